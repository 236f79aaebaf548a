#!/usr/bin/env bash
# Train under Slurm, on 2 nodes with 4 GPUs each; where the time limit comes first, the job is queued again and goes on.
# From the root of the repository, with the Python environment active, which Slurm hands on:
#
#     sbatch examples/slurm.sh options/train_rrdb_P+SeD.yml --set train.start_from=RRDB.pth --data_root /data/DF2K
#
#SBATCH --job-name=sed
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --time=24:00:00
# Not --gpus-per-task, which would hide the other GPUs of the node from a process: it takes its own by LOCAL_RANK.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
# Slurm's own requeue, after a node failed or the job was preempted, and ours: USR1 comes to this script alone (B:), so
# many seconds before the time is up. They must suffice to finish a step and to save a training state.
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
set -euo pipefail
recipe=${1:?usage: sbatch examples/slurm.sh RECIPE [arguments of train.py]}

# The processes meet at the first node. The port differs between jobs, which may share that node, and lies below those
# that systems give to outgoing connections.
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT

# In the background, because bash heeds no trap before a command in the foreground has ended. --cpus-per-task is not
# handed on to srun since Slurm 22.05. The processes that are left when one has failed would wait for it.
# shellcheck disable=SC2016 # it is the tasks that know their numbers
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit \
    bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec "$@"' task \
    python train.py --opt "$recipe" --resume auto "${@:2}" &
srun=$!

time_is_up=false
trap 'time_is_up=true; kill -USR1 "$srun" || true' USR1 # srun passes it on to its tasks

# A trapped signal ends `wait` before the process has ended; bash keeps the exit code of that for the last `wait`.
while kill -0 "$srun" 2> /dev/null; do
    wait "$srun" || true
done
code=0
wait "$srun" || code=$?

# After USR1, exit code 0 means that the state is saved. Had the run just come to its end, the next job finds nothing
# to do. A failure would only be repeated.
if $time_is_up && ((code == 0)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
