"""How a language model reads prompts and where its answers end."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from surm.data.language import ASSISTANT
from surm.errors import InputError
from surm.tasks.chat import ChatTemplate
from surm.tasks.language import Language

Prompt = str | Sequence[Mapping[str, Any]]
"""A text, or the messages of a chat, each with `role` and `content`."""

_ANSWER = "answer"


@dataclasses.dataclass(frozen=True, eq=False)
class Dialect:
    """How a model reads prompts and writes texts.

    Attributes:
      tokenizer: the model's tokenizer.
      template: its chat template; None if it has none.
      ends: the tokens that end a text.
      stop: strings that end a text, for a template that ends a turn by ordinary words.
      arguments: further arguments of the template, such as `enable_thinking`.
    """

    tokenizer: tokenizers.Tokenizer
    template: ChatTemplate | None
    ends: tuple[int, ...]
    stop: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, task: Language) -> "Dialect":
        """The dialect of a run's task.

        A text ends at every token of `surm.tasks.special_tokens.ends`, and where the chat template ends an answer.
        """
        closing = "" if task.template is None else _closing(task.template, task.arguments)
        end, stop = _closed(task.opened.tokenizer, closing)
        return cls(task.opened.tokenizer, task.template, tuple(sorted({*task.ends, *end})), stop, task.arguments)

    def tokens(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """The tokens of a prompt, up to the beginning of the answer.

        Args:
          prompt: a text, which counts as one message of the user if the model has a chat template; or messages.
          raw: whether a text is read as it is, and continued, although there is a template.

        Returns:
          The tokens.

        Raises:
          InputError: if the prompt is empty or has another form, or is a chat and the model has no template.
        """
        if isinstance(prompt, str) and not prompt:
            raise InputError("a prompt is empty, expected a text")
        if isinstance(prompt, str) and (raw or self.template is None):
            return _begun(self.tokenizer.encode(prompt))
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _messages(prompt)
        if self.template is None:
            raise InputError("a prompt is a chat, but the model has no chat template; expected a string")
        text = self.template.render(messages, add_generation_prompt=True, **self.arguments)
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)


def _closing(template: ChatTemplate, arguments: Mapping[str, Any]) -> str:
    """The text that a template puts behind an answer; empty if it cannot be told."""
    messages = [{"role": "user", "content": "question"}, {"role": ASSISTANT, "content": _ANSWER}]
    with contextlib.suppress(InputError):
        text, spans = template.spans(messages, **arguments)
        begin, end = spans[-1]
        return text[begin:end].rpartition(_ANSWER)[2].strip()
    return ""


def _begun(encoding: tokenizers.Encoding) -> list[int]:
    """The tokens of a text that goes on: without those that the tokenizer puts behind a text, such as its end."""
    size = len(encoding.ids)
    while size > 1 and encoding.special_tokens_mask[size - 1]:
        size -= 1
    return encoding.ids[:size]


def _closed(tokenizer: tokenizers.Tokenizer, closing: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The token that ends an answer, the first of a closing that is matched as a whole; and the words before it."""
    whole = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.content.strip()}
    encoding = tokenizer.encode(closing, add_special_tokens=False)
    place = next((place for place, number in enumerate(encoding.ids) if number in whole), None)
    end = () if place is None else (encoding.ids[place],)
    words = closing if place is None else closing[: encoding.offsets[place][0]]
    return end, (words.strip(),) if words.strip() else ()


def _messages(prompt: Any) -> list[dict[str, Any]]:
    fits = isinstance(prompt, list | tuple) and all(isinstance(one, Mapping) for one in prompt)
    if not fits or not prompt or not all({"role", "content"} <= one.keys() for one in prompt):
        raise InputError(
            f"a prompt is {prompt!r:.80}, expected a string, or a list of messages such as "
            "{'role': 'user', 'content': 'Hello'}"
        )
    return [dict(one) for one in prompt]
