"""The metric `exact_match`: the share of examples whose last answer a language model writes word for word."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import nnx

from surm.data.language import ASSISTANT
from surm.data.language_tokens import LanguageTokens
from surm.machine.notes import say
from surm.tasks import generated
from surm.tasks.dialect import Dialect, Prompt
from surm.tasks.generated import Request
from surm.tasks.language import Language

_MORE = 8  # tokens beyond those of the longest answer, for what ends a turn


class _Asked(NamedTuple):
    """The prompts of a split as tokens, with their answers and the largest number of tokens of an answer."""

    prompts: list[list[int]]
    answers: list[str]
    longest: int


class Writer:
    """Lets a model answer the examples of a split; the most probable token follows each time."""

    def __init__(self, task: Language, batch_size: int):
        """Writes as many answers at once as `batch_size` says."""
        self._dialect, self._batch_size = Dialect.of(task), batch_size
        self._asked: dict[int, _Asked] = {}  # by the identity of a split, which the run keeps

    def measured(self, model: nnx.Module, source: LanguageTokens) -> dict[str, float]:
        """Measures a model.

        Args:
          model: the model, in evaluation mode.
          source: a split from `Language.ready`.

        Returns:
          `exact_match`: the share of answers that are written as they stand in the data, but for white space at both
          ends. An answer to a prompt that fills the model's context counts as wrong.
        """
        if id(source) not in self._asked:
            self._asked[id(source)] = self._of(source)
        prompts, answers, longest = self._asked[id(source)]
        fitting = [row for row, prompt in enumerate(prompts) if len(prompt) < model.config.max_length]
        if len(fitting) < len(prompts):
            say(f"{len(prompts) - len(fitting)} of {len(prompts)} prompts fill the model's context and count as wrong")
        request = Request(longest + _MORE, batch_size=self._batch_size)
        texts = generated.texts(lambda _: model, self._dialect, [prompts[row] for row in fitting], request)
        found = generated.exactly_written(texts, [answers[row] for row in fitting])
        return {"exact_match": found * len(fitting) / len(prompts)}

    def _of(self, source: LanguageTokens) -> _Asked:
        pairs = [_pair(source.examples[index]) for index in range(len(source.examples))]
        answers = [answer for _, answer in pairs]
        encoded = self._dialect.tokenizer.encode_batch(answers, add_special_tokens=False)
        return _Asked([self._dialect.tokens(prompt) for prompt, _ in pairs], answers, max(map(len, encoded)))


def _pair(example: Mapping[str, Any]) -> tuple[Prompt, str]:
    """The prompt of an example's last answer, and that answer."""
    if "prompt" in example:
        return example["prompt"], example["completion"]
    messages = example["messages"]
    last = max(number for number, message in enumerate(messages) if message["role"] == ASSISTANT)
    return messages[:last], messages[last]["content"]
