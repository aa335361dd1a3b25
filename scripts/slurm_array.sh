#!/usr/bin/env bash
# A sweep as a Slurm job array, one run a task. `python -m surm.sweep --launcher=slurm` writes it from
# scripts/slurm_array.sh: what stands in double braces is filled in, the lines between "every run" and "end" are
# written once a run. Change resources and environment to what your cluster wants, here or in a copy (--template=FILE).
#
#SBATCH --job-name=surm
#SBATCH --array={{array}}
#SBATCH --output={{output}}
#SBATCH --open-mode=append
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
##SBATCH --gpus=1
##SBATCH --partition=NAME
#
# A run that is asked to stop saves and goes on later. Two minutes before the time is up Slurm tells this script alone
# (B:), which asks the run to stop and puts the task back into the queue. After a preemption Slurm does so itself.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue

cd {{directory}} || exit
case "$SLURM_ARRAY_TASK_ID" in
# every run
{{index}}) log={{log}}; set -- {{python}} -m surm.train {{flags}} ;;
# end
*) echo "no run has the index $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;
esac

export PYTHONUNBUFFERED=1
mkdir -p "$(dirname "$log")"
"$@" >>"$log" 2>&1 &
run=$!
trap 'time_is_up=1; kill -TERM "$run"' USR1
trap 'kill -INT "$run"' TERM # cancelled or preempted: SIGTERM may have reached the run too, and a second would kill it

until wait "$run"; status=$?; ! kill -0 "$run" 2>/dev/null; do :; done # a signal ends the waiting, not the run
if [ -n "${time_is_up:-}" ] && [ "$status" -gt 128 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$status"
