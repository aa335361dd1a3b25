"""Chat templates: the text that stands for a list of messages, and the parts of it that are the model's answers.

A template is a program in Jinja that a model's files bring along; it is run in a sandbox, with the functions that
transformers gives to templates. Where a template marks the answers by `{% generation %}`, its marks are followed.
Elsewhere the answer to the messages before it begins where the generation prompt ends, which is the text that a model
is given to write the answer, and ends with the text that the template puts behind the answer, up to its last character
that is not white space: the token that ends a turn belongs to the answer, a line break behind it does not.

Source: `render_jinja_template` of transformers 5.23, for the functions that templates may call.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from etils import epath

from surm import files
from surm.data import tokenizer_files
from surm.data.language import ASSISTANT
from surm.errors import InputError, one_line
from surm.models import gguf
from surm.tasks import special_tokens
from surm.tasks.template_arguments import CLOCK

Messages = Sequence[Mapping[str, Any]]

FILE = "chat_template.jinja"
_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_BEGIN, _END, _CONTENT = "\ufdd0", "\ufdd1", "\ufdd2"  # Unicode keeps these for uses such as this; texts have none
_REASONING = ("reasoning_content", "thinking", "reasoning")


class _Generation(jinja2.ext.Extension):
    """The block `{% generation %}`, whose text is put between two marks."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.CallBlock:
        """Parses the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return f"{_BEGIN}{caller()}{_END}"


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _json
    environment.globals |= {"raise_exception": _raise, CLOCK: _now}
    return environment.from_string(source)


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A model's chat template.

    Attributes:
      source: the program.
      origin: the file that it was read from, for messages.
      special: the texts of the special tokens that the program may name, such as `bos_token`.
    """

    source: str
    origin: str
    special: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, path: str | os.PathLike | None) -> "ChatTemplate | None":
        """Reads the template of a model.

        Args:
          path: the folder of a model or tokenizer, or a file of weights in it; or a .gguf file. Any other file, such as
            a tokenizer.json that is used as it stands, has none, and so has None.

        Returns:
          The template; None if there is none.

        Raises:
          InputError: if a file cannot be read, or the template is no valid program.
        """
        place = None if path is None else files.path(path)
        if place is not None and gguf.is_named(place):
            found = _of_gguf(place)
        else:
            folder = tokenizer_files.folder_of(place)
            found = None if folder is None else _of_folder(folder)
        if found is not None:
            found.check()
        return found

    def check(self) -> None:
        """Raises InputError if the template is no valid program."""
        try:
            _compiled(self.source)
        except jinja2.TemplateError as error:
            raise InputError(f"{self.origin} holds no valid chat template: {one_line(error)}") from error

    def render(self, messages: Messages, *, add_generation_prompt: bool = False, **arguments: Any) -> str:
        """The text that stands for messages.

        Args:
          messages: each with `role` and `content`, and further fields that the template may read.
          add_generation_prompt: whether the text ends where the model is to write its answer.
          **arguments: further arguments of the template, such as `enable_thinking`.

        Returns:
          The text.

        Raises:
          InputError: if the template refuses the messages, or cannot be run on them.

        Source: `apply_chat_template` of transformers, with `tokenize=False`.
        """
        text = self._run(messages, add_generation_prompt, arguments)
        return text.replace(_BEGIN, "").replace(_END, "")

    def spans(self, messages: Messages, **arguments: Any) -> tuple[str, list[tuple[int, int]]]:
        """The text that stands for messages, and the places of the assistant's answers in it.

        Args:
          messages: as for `render`; at least one has the role `assistant`.
          **arguments: as for `render`.

        Returns:
          The text; and for every answer the index of its first character and that behind its last one. An answer
          includes the text that the template puts behind it, which ends the turn.

        Raises:
          InputError: as for `render`; or if it cannot be told which part of the text an answer is.
        """
        if _MARKS.search(self.source):
            return _unmarked(self._run(messages, False, arguments), self.origin)
        text = self.render(messages, **arguments)
        answers = [number for number, message in enumerate(messages) if message["role"] == ASSISTANT]
        return text, [self._span(messages, number, text, arguments) for number in answers]

    def _span(self, messages: Messages, number: int, text: str, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """The place of one answer, found by the text in which a mark stands instead of it."""
        before, (answer, after) = messages[:number], (messages[number], messages[number + 1 :])
        marked = {**answer, "content": _CONTENT}
        found = self.render([*before, marked, *after], **arguments)
        head, _, tail = found.partition(_CONTENT)
        once, around = found.count(_CONTENT) == 1, len(head) + len(tail) <= len(text)
        if not (once and around and text.startswith(head) and text.endswith(tail)):
            raise InputError(
                f"{self.origin} does not show which part of the text is message {number + 1}; mark the answers there "
                "by {% generation %} and {% endgeneration %}"
            )
        end = len(text) - len(tail)
        alone = self.render([*before, marked], **arguments).partition(_CONTENT)[2] if after else tail
        closing = _closing(tail, alone)
        return self._begin(before, head, text, arguments), end + len(closing.rstrip() or closing)

    def _begin(self, before: Messages, head: str, text: str, arguments: Mapping[str, Any]) -> int:
        """Where the generation prompt ends, or the part of it that this text has too."""
        if not before:
            return len(head)
        prompt = self.render(before, add_generation_prompt=True, **arguments)
        return len(prompt) if text.startswith(prompt) else len(os.path.commonprefix([prompt, head]))

    def _run(self, messages: Messages, add_generation_prompt: bool, arguments: Mapping[str, Any]) -> str:
        given = {**self.special, **arguments}
        try:
            return _compiled(self.source).render(
                messages=[_with_reasoning(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **given,
            )
        except Exception as error:  # a template can fail in any way that a program can
            raise InputError(f"{self.origin} cannot be used on the chat: {one_line(error)}") from error


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without empty fields, and with its reasoning under the names that templates read."""
    found = {key: value for key, value in message.items() if value is not None}
    reasoning = next((found[name] for name in _REASONING if name in found), None)
    return found if reasoning is None else {"thinking": reasoning, **found, "reasoning_content": reasoning}


def _unmarked(text: str, origin: str) -> tuple[str, list[tuple[int, int]]]:
    """A text without the marks of `_Generation`, and the places between them."""
    pieces, spans, begin, length = [], [], None, 0
    for piece in re.split(f"([{_BEGIN}{_END}])", text):
        if piece == _BEGIN:
            begin = length
        elif piece == _END and begin is not None:
            spans, begin = [*spans, (begin, length)], None
        else:
            pieces.append(piece)
            length += len(piece)
    if not any(first < last for first, last in spans):
        raise InputError(f"{origin} marks no part of the chat by {{% generation %}}, so there is no answer to learn")
    return "".join(pieces), spans


def _closing(tail: str, alone: str) -> str:
    """The beginning of the text behind an answer that also stands there if the answer is the last message."""
    if tail.startswith(alone):
        return alone
    here, there = (re.findall(r"\s+|\S+", one) for one in (tail, alone))
    return "".join(os.path.commonprefix([here, there]))


def _of_folder(folder: epath.Path) -> ChatTemplate | None:
    file, settings = folder / FILE, folder / tokenizer_files.SETTINGS
    stated = (files.json_object(settings) or {}).get("chat_template")
    source, origin = (file.read_text(), file) if file.is_file() else (_default(stated, settings), settings)
    if source is None:
        return None
    return ChatTemplate(source, repr(str(origin)), special_tokens.texts(folder))


def _default(stated: Any, file: epath.Path) -> str | None:
    """The template of a tokenizer_config.json, which may hold several by name."""
    if isinstance(stated, list):
        with contextlib.suppress(TypeError, KeyError):
            stated = {one["name"]: one["template"] for one in stated}
    if isinstance(stated, dict):
        stated = stated.get("default", stated)
    if stated is not None and not isinstance(stated, str):
        raise InputError(f"{str(file)!r} has no chat_template that is a text, or a list with one called 'default'")
    return stated


def _of_gguf(file: epath.Path) -> ChatTemplate | None:
    source = gguf.chat_template(files.local(file))
    return None if source is None else ChatTemplate(source, repr(str(file)), special_tokens.texts(file))
