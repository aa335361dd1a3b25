"""Signals: the first of a kind is noted, the second acts, and what was there before is put back."""

import signal
import subprocess
import sys

import pytest

from surm.machine import stopping


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


def ended(body: str, *, ignored: bool = False, **more) -> subprocess.CompletedProcess:
    """A program whose `with stopping.at_once():` has a body."""
    code = "import os, signal, time\nfrom surm.machine import stopping\nwith stopping.at_once():\n" + body
    interrupt = signal.SIG_IGN if ignored else signal.SIG_DFL  # the tests themselves may run in the background
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, interrupt), **more)  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "waiting",
    [
        "    class Swallowing:\n"
        "        def __del__(self): os.kill(os.getpid(), NUMBER); time.sleep(9)\n"
        "    Swallowing()\n",
        "    import ctypes\n"
        "    os.posix_spawnp('sh', ['sh', '-c', f'sleep 1; kill -NUMBER {os.getpid()}'], os.environ)\n"
        "    for _ in range(9): ctypes.CDLL(None).sleep(9)\n",  # which is woken, and sleeps on
    ],
    ids=["in a callback whose exceptions are dropped", "in a library that waits"],
)
def test_at_once_ends_the_process_with_a_line_wherever_it_is(number, waiting):
    done = ended(waiting.replace("NUMBER", str(int(number))) + "    print('went on')\n", timeout=30)
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr == f"stopped by {number.name} at once; the same command continues from the last checkpoint\n"


def test_at_once_ends_it_though_nobody_reads_what_it_says():
    body = "    reading, writing = os.pipe(); os.dup2(writing, 2); os.close(reading); os.close(writing)\n"
    assert ended(body + "    os.kill(os.getpid(), 15); time.sleep(9)\n", timeout=30).returncode == 143


def test_a_signal_that_is_ignored_stays_so():
    done = ended("    os.kill(os.getpid(), 2); time.sleep(0.5); print('went on')\n", ignored=True)
    assert (done.returncode, done.stdout) == (0, "went on\n")


def test_inside_at_once_requests_are_collected_and_a_second_one_is_the_usual():
    body = (
        "    try:\n"
        "        with stopping.requests() as asked:\n"
        "            os.kill(os.getpid(), 2); time.sleep(0.5); print(asked, flush=True)\n"
        "            os.kill(os.getpid(), 2); time.sleep(9)\n"
        "    except KeyboardInterrupt: print('saved', flush=True)\n"
        "    os.kill(os.getpid(), 15); time.sleep(9)\n"
    )
    done = ended(body)
    assert (done.returncode, done.stdout) == (143, "[2]\nsaved\n")


def test_at_once_puts_back_what_was_there():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with stopping.at_once():
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in before} == before
    assert signal.set_wakeup_fd(-1) == -1
