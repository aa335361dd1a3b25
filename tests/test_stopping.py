"""Signals: the first of a kind is noted, the second acts at once, and what was there before is put back."""

import signal
import subprocess
import sys
import threading
import time

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


def test_after_a_block_within_the_outer_line_is_said_again():
    done = ended("    with stopping.at_once('inner'): pass\n    os.kill(os.getpid(), 15); time.sleep(9)\n", timeout=30)
    assert done.stderr == "stopped by SIGTERM at once; the same command continues from the last checkpoint\n"


def test_a_signal_that_is_ignored_stays_so():
    done = ended("    os.kill(os.getpid(), 2); time.sleep(0.5); print('went on')\n", ignored=True)
    assert (done.returncode, done.stdout) == (0, "went on\n")


COLLECTING = (
    "    import threading\n"
    "    writer = threading.Event()\n"
    "    threading.Thread(target=writer.wait).start()  # as orbax's, no daemon: an orderly exit would wait for it\n"
    "    with stopping.requests() as asked:\n"
    "        os.kill(os.getpid(), NUMBER); os.kill(os.getpid(), NUMBER)  # as `timeout` does\n"
    "        time.sleep(0.5); print(asked, flush=True)\n"
)


@pytest.mark.parametrize(
    ("number", "waiting"),
    [
        pytest.param(signal.SIGTERM, "writer.wait()", id="for a checkpoint"),
        pytest.param(signal.SIGINT, "__import__('ctypes').CDLL(None).sleep(60); time.sleep(60)", id="in a library"),
    ],
)
def test_a_second_signal_ends_the_process_although_other_threads_write(number, waiting):
    later = "        os.posix_spawnp('sh', ['sh', '-c', f'sleep 0.2; kill -NUMBER {os.getpid()}'], os.environ)\n"
    body = COLLECTING + later
    began = time.monotonic()
    done = ended(body.replace("NUMBER", str(int(number))) + f"        {waiting}\n", timeout=30)
    assert (done.returncode, done.stdout) == (128 + number, f"[{int(number)}]\n")
    assert done.stderr == f"stopped by {number.name} at once; the same command continues from the last checkpoint\n"
    assert time.monotonic() - began < 20


def test_signals_of_two_kinds_are_two_requests_that_both_wait_for_the_checkpoint():
    body = COLLECTING.replace("NUMBER", "2") + "        os.kill(os.getpid(), 15); time.sleep(0.5); print(asked)\n"
    done = ended(body + "        writer.set()\n", timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[2]\n[2, 15]\n", "")


def test_outside_the_main_thread_at_once_changes_nothing():
    found = []
    thread = threading.Thread(target=lambda: found.append(entered()))

    def entered() -> bool:
        with stopping.at_once():
            return True

    thread.start()
    thread.join()
    assert found == [True]


def test_at_once_puts_back_what_was_there():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with stopping.at_once():
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in before} == before
    assert signal.set_wakeup_fd(-1) == -1
