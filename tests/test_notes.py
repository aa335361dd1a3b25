"""A library does not print; a command shows each notice once."""

import subprocess
import sys

PROGRAM = """
import logging, sys
from surm.machine import notes, status
logging.basicConfig(level=logging.INFO) if "root" in sys.argv else None

def act():
    notes.say("odd but usable")
    notes.warn("failed, not needed")
    return 0

if "command" in sys.argv:
    status.status_of(act)
else:
    act()
"""


def said(*words: str) -> tuple[str, str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_a_library_says_nothing_on_standard_output():
    assert said() == ("", "failed, not needed\n")  # a warning that nobody handles goes to standard error


def test_a_program_of_ones_own_sees_notices_by_pythons_logging():
    assert said("root") == ("", "INFO:surm:odd but usable\nWARNING:surm:failed, not needed\n")


def test_a_command_shows_each_notice_once_whatever_handlers_there_are():
    for more in ((), ("root",)):
        assert said("command", *more) == ("odd but usable\n", "warning: failed, not needed\n")
