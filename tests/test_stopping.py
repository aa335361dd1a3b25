"""Signals: the first of a kind is noted, the second acts, and what was there before is put back."""

import signal

import pytest

from surm import stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_acts_as_it_did_before(number):
    acted = []
    before = signal.signal(number, lambda *_: acted.append("before"))
    try:
        with stopping.requests() as asked:
            signal.raise_signal(number)
            assert (asked, acted) == ([number], [])
            signal.raise_signal(number)
            assert (asked, acted) == ([number], ["before"])
        signal.raise_signal(number)
        assert acted == ["before"] * 2
    finally:
        signal.signal(number, before)
