"""Trains what a config's `sweep()` asks for: `python -m surm.sweep --config=configs/vit_digits.py --workdir=DIR`.

Every run is `python -m surm.train` in a process of its own, in a folder DIR/NAME that is called by its overrides, with
its output in DIR/NAME/log.txt. Finished runs are skipped, stopped ones go on, a failed one does not hold up the others;
at the end there is one table, best first. `--config.KEY=VALUE` holds for all runs.

`--launcher=print` prints the commands of what is missing instead, and the table on the error stream; `slurm` and `xpk`
write a script into DIR from a template in `scripts/` or from `--template=FILE`. A sweep that was trained elsewhere is
looked at, and completed, by the same command.

`--dry_run --target=tpu:v5e:4x4` trains nothing: it compiles a step of every run for hardware that need not be there,
and prints whether it fits, its bytes and its rate at best.
"""

import sys

from surm.cli import command_line
from surm.cli.command_line import CommandLine
from surm.cli.flags import SWEEP
from surm.errors import InputError, nearest
from surm.machine import targets
from surm.machine.status import status_of
from surm.sweeps import described, launchers, plan

LAUNCHERS = ("local", "print", *launchers.TEMPLATES)


def _launch(line: CommandLine) -> int:
    launcher, template = line.options["launcher"] or "local", line.options["template"]
    if launcher not in LAUNCHERS:
        raise InputError(f"--launcher={launcher}; {nearest(launcher, LAUNCHERS)}")
    if template is not None and launcher not in launchers.TEMPLATES:
        raise InputError(f"--template={template} is given, but --launcher={launcher} takes none")
    target = targets.asked(line.options, line.switches)
    if target is None and line.switches["dry_run"]:
        raise InputError("--dry_run of a sweep compiles for a target: add one, such as --target=tpu:v5e:4x4")
    runs = plan.plan(line)
    if target is not None:
        targets.only_described()
        targets.devices_of(target)  # a target that no run can be compiled for is refused once
        return described.show(runs, target.text)
    if launcher == "local":
        return plan.train_here(runs)
    if launcher == "print":
        return plan.print_commands(runs)
    return plan.write_script(runs, launcher, line.workdir, template)


def main(argv: list[str] | None = None) -> int:
    """The command line: status 0 if all is well, 1 if runs failed, 2 for unusable input or a folder that cannot be
    written, 128 + the signal's number for a sweep that was asked to stop.

    Args:
      argv: as `sys.argv`.

    Returns:
      The exit status.
    """
    given = sys.argv if argv is None else argv
    return status_of(lambda: _launch(command_line.parse(given, SWEEP)))


if __name__ == "__main__":
    sys.exit(main())
