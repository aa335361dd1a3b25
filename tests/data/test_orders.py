"""The made set of chats is the same everywhere, and its answers follow from its requests."""

import hashlib
import pathlib
import re

import numpy as np
import pytest

from surm import InputError
from surm.cli import command_line
from surm.data import orders, sources

ROOT = pathlib.Path(__file__).parents[2]

NUMBERS = {word: number for number, word in enumerate(("a", "two", "three", "four", "five", "six"), 1)} | {"an": 1}


@pytest.fixture(scope="module")
def data():
    return sources.load("orders")


def chats(split) -> list[tuple[str, str]]:
    found = [split[number]["messages"] for number in range(len(split))]
    assert all([one["role"] for one in chat] == ["user", "assistant"] for chat in found)
    return [tuple(one["content"] for one in chat) for chat in found]


def read(request: str) -> str:
    """The kitchen's line, read off the words of a request from left to right."""
    singular = {thing.plural: thing.name for thing in orders._THINGS} | {one.name: one.name for one in orders._THINGS}
    word = "|".join(
        [*NUMBERS, "small", "large", "warm", "(?:oat|soy) milk", "no sugar", *sorted(singular, key=len)[::-1]]
    )
    items: list[tuple[str, str, list[str]]] = []
    for found in re.findall(rf"\b(?:{word})\b", request.lower().replace("i'd like ", "").replace("friend and i", "")):
        if found in NUMBERS:
            items.append((str(NUMBERS[found]), "", []))
        elif found in singular:
            items[-1] = (items[-1][0], singular[found], items[-1][2])
        else:
            items[-1][2].append(found.removesuffix(" milk"))
    order = ("small", "large", "oat", "soy", "no sugar", "warm")
    told = [(f"{number} {name}", ", ".join(sorted(wishes, key=order.index))) for number, name, wishes in items]
    line = " + ".join(what + (f"({wishes})" if wishes else "") for what, wishes in told)
    return line + " | to go" * (" to go" in request)


def test_every_line_is_what_its_request_says(data):
    for split in (data.train, data.validation, data.test):
        for request, line in chats(split):
            assert read(request) == line, request


def test_it_is_the_same_set_on_every_machine(data):
    said = repr([chats(split) for split in (data.train, data.validation, data.test)])
    assert hashlib.sha256(said.encode()).hexdigest()[:16] == "5dc3e6fb06cb53e6"
    assert chats(orders.load().train) == chats(data.train)
    assert next(data.train.content(np.arange(1))) == next(orders.load().train.content(np.arange(1)))


def test_no_request_comes_twice(data):
    splits = {name: chats(data.split(name)) for name in orders.SIZES}
    assert {name: len(found) for name, found in splits.items()} == orders.SIZES
    requests = [request for found in splits.values() for request, _ in found]
    assert len({*requests}) == len(requests) and data.kind == "language"
    assert data.test[0]["place"] == "request 1 of orders/test"


def test_it_has_a_test_split_of_its_own():
    with pytest.raises(InputError, match="data.test_examples=5, but 'orders' has a held-out split of its own"):
        sources.load("orders", test_examples=5)


def test_the_demo_asks_the_first_three_requests_of_the_test_split(data):
    asked = re.findall(r'--prompt "(.*?)"', (ROOT / "Makefile").read_text())
    assert asked == [request for request, _ in chats(data.test)[:3]]


@pytest.mark.parametrize(
    ("arguments", "source", "steps", "rate"),
    [
        ("", "orders", 60, 4e-3),
        (":family=kronecker", "orders", 60, None),
        (":method=full", "orders", 60, None),
        (":data=chats", "chats", 0, None),
    ],
)
def test_the_config_knows_what_the_orders_need(arguments, source, steps, rate):
    config = command_line.parse(
        ["surm.train", f"--config={ROOT / 'configs' / 'lm_text.py'}{arguments}", "--workdir=w"]
    ).config
    assert (config.data.source, config.optim.steps, config.optim.learning_rate) == (source, steps, rate)
    assert config.data.generate == (source == "orders")
