"""The list of mutants fits the code: whoever changes a line that one stands for moves the mutant along."""

import pathlib

import pytest

from tests.mutants.mutants import MUTANTS

SURM = pathlib.Path(__file__).parent.parent / "surm"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}-{mutant.old[:20]}")
def test_a_mutant_changes_one_place_of_its_file(mutant):
    assert (SURM / mutant.file).read_text().count(mutant.old) == 1 and mutant.new != mutant.old


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}-{mutant.old[:20]}")
def test_a_mutant_is_a_fault_that_python_can_run(mutant):
    text = (SURM / mutant.file).read_text().replace(mutant.old, mutant.new)
    compile(text, mutant.file, "exec")


def test_there_are_forty_and_every_room_has_one():
    rooms = {mutant.file.split("/")[0] for mutant in MUTANTS}
    assert len(MUTANTS) >= 40
    wanted = "matrices peft models data tasks training rundir exchange report sweeps machine cli"
    assert rooms >= {*wanted.split()}
    assert any("algebra" in mutant.file for mutant in MUTANTS)
