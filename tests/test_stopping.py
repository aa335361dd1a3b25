"""Signals: the first of a kind is noted, the second acts, and what was there before is put back."""

import signal
import subprocess
import sys

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_at_once_ends_the_process_with_a_line_wherever_it_is(number):
    inside_a_callback = (
        "import signal, sys; from surm import stopping\n"
        "class Swallowing:\n"
        f"    def __del__(self): signal.raise_signal({int(number)})\n"  # what is raised here, Python prints and drops
        "with stopping.at_once():\n"
        "    x = Swallowing(); del x\n"
        "    print('went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", inside_a_callback], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr == f"stopped by {number.name} at once; the same command goes on from what was saved\n"


def test_at_once_puts_back_what_was_there():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with stopping.at_once():
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
        with stopping.requests() as asked:
            signal.raise_signal(signal.SIGTERM)
        assert asked == [signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in before} == before
