"""Orders in a café, a small made set of chats: the words of a guest, and the line that the kitchen reads.

    Could I have two large lattes with oat milk and a warm croissant to go?
    2 latte(large, oat) + 1 croissant(warm) | to go

The line names the things in the order of the request, each with its number and then its wishes: the size, the milk,
`no sugar` and `warm`. `| to go` ends it if the guest takes everything along. The set is the same on every machine,
because it is drawn by `random.random` alone, whose numbers Python keeps from version to version.
"""

import functools
import random
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from surm.data.language import ASSISTANT, TASK, LanguageSplit
from surm.data.options import Options
from surm.data.splits import Dataset

NAME = "orders"
"""The value of `config.data.source` that asks for this set."""

SIZES = {"train": 320, "validation": 60, "test": 60}
"""The number of requests in each split. No request is in two of them, nor twice in one."""

_NONE = Options()
_NUMBERS = ("a", "two", "three", "four", "five", "six")
_FRAMES = (
    "I'd like {}, please.",
    "Could I have {}?",
    "Can we get {}?",
    "{}, please.",
    "Hi, we'll take {}.",
    "Good morning, {} for us.",
    "My friend and I would love {}.",
    "Just {} today.",
)

T = TypeVar("T")


class _Thing(NamedTuple):
    """Something to order.

    Attributes:
      name: what one of it is called.
      wishes: the kinds of wishes that fit it.
      plural: what several of it are called.
    """

    name: str
    wishes: tuple[str, ...]
    plural: str


_THINGS = (
    _Thing("latte", ("size", "milk", "sugar"), "lattes"),
    _Thing("cappuccino", ("size", "milk", "sugar"), "cappuccinos"),
    _Thing("tea", ("size", "milk", "sugar"), "teas"),
    _Thing("hot chocolate", ("size", "milk"), "hot chocolates"),
    _Thing("lemonade", ("size", "sugar"), "lemonades"),
    _Thing("espresso", ("sugar",), "espressos"),
    _Thing("croissant", ("warm",), "croissants"),
    _Thing("muffin", ("warm",), "muffins"),
    _Thing("brownie", ("warm",), "brownies"),
    _Thing("bagel", ("warm",), "bagels"),
    _Thing("sandwich", ("warm",), "sandwiches"),
    _Thing("cookie", (), "cookies"),
)


def load(options: Options = _NONE) -> Dataset:
    """Makes the set.

    Args:
      options: the options of the source.

    Returns:
      320 requests to train on, 60 to validate and 60 to test, as `messages` of a user and the assistant.
    """
    requests, splits = iter(_requests(sum(SIZES.values())).items()), {}
    for name, size in SIZES.items():
        chosen = [next(requests) for _ in range(size)]
        examples = [{"messages": _chat(*one)} for one in chosen]
        splits[name] = LanguageSplit(examples, [f"request {number} of {NAME}/{name}" for number in range(1, size + 1)])
    return Dataset(**options.parts(splits, repr(NAME)), num_classes=1, metrics=(), kind=TASK)


def _chat(request: str, line: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": request}, {"role": ASSISTANT, "content": line}]


def _requests(number: int) -> dict[str, str]:
    """The first different requests that are drawn, each with the kitchen's line."""
    draw, found = random.Random(0).random, {}
    while len(found) < number:
        request, line = _request(draw)
        found[request] = line
    return found


def _request(draw: Callable[[], float]) -> tuple[str, str]:
    chosen: dict[_Thing, tuple[str, str]] = {}
    wanted = _one_of(draw, (1, 2, 2, 3))
    while len(chosen) < wanted:
        thing = _one_of(draw, _THINGS)
        chosen[thing] = _item(draw, thing)
    said, read = zip(*chosen.values(), strict=True)
    whole = f"{', '.join(said[:-1])} and {said[-1]}" if len(said) > 1 else said[0]
    to_go = draw() < 0.3
    sentence = _one_of(draw, _FRAMES).format(whole + " to go" * to_go)
    return sentence[0].upper() + sentence[1:], " + ".join(read) + " | to go" * to_go


def _item(draw: Callable[[], float], thing: _Thing) -> tuple[str, str]:
    """Some number of one thing, in the guest's words and in the kitchen's."""
    number = _one_of(draw, (1, 1, 1, 2, 2, 3, 4, 5, 6))
    wish = functools.partial(_wish, draw, thing)
    size, milk = wish("size", ("small", "large")), wish("milk", ("oat", "soy"))
    sugar, warm = wish("sugar", ("no sugar",)), wish("warm", ("warm",))
    name = thing.name if number == 1 else thing.plural
    said = " ".join(word for word in (_NUMBERS[number - 1], size, warm, name) if word)
    said = said.replace("a espresso", "an espresso")
    extras = " and ".join(extra for extra in (milk and f"{milk} milk", sugar) if extra)
    wishes = ", ".join(word for word in (size, milk, sugar, warm) if word)
    return said + (extras and f" with {extras}"), f"{number} {thing.name}" + (wishes and f"({wishes})")


def _wish(draw: Callable[[], float], thing: _Thing, kind: str, words: tuple[str, ...]) -> str:
    """One of the words of a kind of wish, or none; nothing is drawn for a thing that it does not fit."""
    return _one_of(draw, words) if kind in thing.wishes and draw() < 0.4 else ""


def _one_of(draw: Callable[[], float], things: tuple[T, ...]) -> T:
    return things[int(draw() * len(things))]
