"""`surm generate`: prompts from the command line or a file, and a chat on a terminal."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from surm import files
from surm.errors import InputError, one_line

Generate = Callable[..., Any]
"""`surm.load_run(DIR).generate`."""

_SETTINGS = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "raw")


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    made = argparse.ArgumentParser(
        prog="surm generate", description="Continues prompts with the language model of a finished run. A prompt is "
        "one message of the user if the model has a chat template. One --prompt is answered in plain text while it is "
        "written; several, or a --file, are answered by one JSON object a line, with the prompt and the completion.",
    )  # fmt: skip
    made.add_argument("run", help="the folder of a finished run")
    made.add_argument("--prompt", action="append", default=[], help="a prompt; may be given several times")
    made.add_argument(
        "--file", help="a JSONL file of prompts, each {'prompt': TEXT} or {'messages': [...]}; an assistant's message "
        "at the end, as in a data set, is left out",
    )  # fmt: skip
    made.add_argument("--chat", action="store_true", help="read messages from the terminal until Ctrl-D")
    made.add_argument("--system", default="", help="the system message of a chat")
    made.add_argument(
        "--base", action="store_true", help="answer every prompt of --prompt or --file without the adapter, too"
    )
    made.add_argument("--raw", action="store_true", help="continue prompts as they are, without the chat template")
    made.add_argument("--max_new_tokens", type=int, default=256, help="the largest number of new tokens (256)")
    made.add_argument("--temperature", type=float, default=0.0, help="0 (the default) for the most probable token")
    made.add_argument("--top_k", type=int, default=0, help="draw from the k most probable tokens alone; 0 for all")
    made.add_argument("--top_p", type=float, default=1.0, help="draw from tokens of this total probability; 1 for all")
    made.add_argument("--repetition_penalty", type=float, default=1.0, help="above 1 for fewer repetitions")
    made.add_argument(
        "--stop", action="append", default=[], help="a string that ends a text; may be given several times"
    )
    made.add_argument("--seed", type=int, default=0, help="the seed of random choices (0)")
    return made


def check(chosen: argparse.Namespace) -> None:
    """Raises InputError if the flags name no prompts, or prompts of several kinds."""
    given = [name for name in ("prompt", "file", "chat") if getattr(chosen, name)]
    if len(given) != 1:
        said = " and ".join(f"--{name}" for name in given) or "none"
        raise InputError(f"one of --prompt, --file and --chat is needed, got {said}")
    if chosen.system and not chosen.chat:
        raise InputError("--system is set, but only --chat has a system message")
    if chosen.base and chosen.chat:
        raise InputError("--base is set, but a chat is answered once; expected --prompt or --file")
    if chosen.raw and chosen.chat:
        raise InputError("--raw is set, but a chat needs the chat template")


def answer(generate: Generate, chosen: argparse.Namespace, base: Generate | None = None) -> int:
    """Answers the prompts on standard output; returns the exit status.

    Args:
      generate: writes texts with the trained model.
      chosen: the flags.
      base: writes texts with the model before training, which are shown beside the others; None shows none.
    """
    settings = {name: getattr(chosen, name) for name in _SETTINGS} | {"stop": chosen.stop}
    if chosen.chat:
        return chat(generate, settings, chosen.system)
    if len(chosen.prompt) == 1 and base is None:
        _write(generate(chosen.prompt, stream=True, **settings))
        return 0
    rows = [{"prompt": text} for text in chosen.prompt] if chosen.prompt else list(_of_file(chosen.file))
    prompts = [row.get("messages", row.get("prompt")) for row in rows]
    answers = {} if base is None else {"base": base(prompts, **settings)}
    answers["completion"] = generate(prompts, **settings)
    for row, *texts in zip(rows, *answers.values(), strict=True):
        found = dict(zip(answers, texts, strict=True))
        print(_compared(**row, **found) if base and chosen.prompt else json.dumps(row | found, ensure_ascii=False))
    return 0


def _compared(prompt: str, base: str, completion: str) -> str:
    """A prompt and its two answers, for reading."""
    shown = {"prompt": prompt, "before": base, "after": completion}
    return "\n".join(f"{name:<8}{text}".replace("\n", "\n" + 8 * " ") for name, text in shown.items()) + "\n"


def chat(generate: Generate, settings: dict[str, Any], system: str = "") -> int:
    """Reads one message after another and answers each, with all earlier ones in view; returns the exit status.

    Ctrl-D ends the chat, and so does Ctrl-C.
    """
    messages = [{"role": "system", "content": system}] if system else []
    for text in _lines():
        messages.append({"role": "user", "content": text})
        try:
            said = _write(generate([messages], stream=True, **settings))
        except KeyboardInterrupt:
            print()
            return 0
        messages.append({"role": "assistant", "content": said})
    return 0


def _lines() -> Iterator[str]:
    """The messages that are typed, without empty ones."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() edits lines and knows earlier ones with it
    while True:
        try:
            text = input("> " if terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            print(end="\n" if terminal else "")
            return
        if text:
            yield text


def _write(pieces: Iterator[str]) -> str:
    """Writes the pieces of a text as they come; returns the text."""
    whole = ""
    for piece in pieces:
        print(piece, end="", flush=True)
        whole += piece
    print()
    return whole


def _of_file(name: str) -> Iterator[dict[str, Any]]:
    place = files.path(name)
    if not place.is_file():
        raise InputError(f"there is no file {name!r}")
    for number, line in enumerate(place.read_text().split("\n"), 1):
        if line.strip():
            yield _row(line, f"{name!r}, line {number}")


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({one_line(error)})") from error
    messages = row.get("messages") if isinstance(row, dict) else None
    if isinstance(messages, Sequence) and not isinstance(messages, str):
        ends = len(messages)
        while ends and isinstance(messages[ends - 1], dict) and messages[ends - 1].get("role") == "assistant":
            ends -= 1
        return {"messages": list(messages[:ends])}
    if isinstance(row, dict) and isinstance(row.get("prompt"), str):
        return {"prompt": row["prompt"]}
    raise InputError(f"{where}: {line:.80}, expected an object with 'prompt', a text, or with 'messages', a list")
