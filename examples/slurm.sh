#!/usr/bin/env bash
# Train under Slurm, on 2 nodes with 4 GPUs each. At its time limit, the job is queued again and continues.
# Run it from the root of the repository with the Python environment active; Slurm passes the environment on:
#
#     sbatch examples/slurm.sh options/train_rrdb_P+SeD.yml --set train.start_from=RRDB.pth --data_root /data/DF2K
#
#SBATCH --job-name=sed
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --time=24:00:00
# Not --gpus-per-task: it would hide the other GPUs of the node, but a process selects its GPU by LOCAL_RANK.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
# --requeue: Slurm queues the job again after a node failure or a preemption. --signal: this script (B:) gets USR1 180
# seconds before the time limit, which must be enough to finish a step and save a training state.
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
set -euo pipefail
recipe=${1:?usage: sbatch examples/slurm.sh RECIPE [arguments of train.py]}

# The first node is the rendezvous. The port depends on the job, because jobs may share that node, and is below the
# range for outgoing connections.
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT

# In the background, because bash runs no trap while a command is in the foreground. srun does not inherit
# --cpus-per-task since Slurm 22.05. --kill-on-bad-exit: when a process has failed, the others would wait for it.
# shellcheck disable=SC2016 # the variables are set in the tasks
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit \
    bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec "$@"' task \
    python train.py --opt "$recipe" --resume auto "${@:2}" &
srun=$!

time_is_up=false
trap 'time_is_up=true; kill -USR1 "$srun" || true' USR1 # srun forwards it to its tasks

# A trapped signal ends `wait` before the process has ended; the last `wait` returns its exit code.
while kill -0 "$srun" 2> /dev/null; do
    wait "$srun" || true
done
code=0
wait "$srun" || code=$?

# After USR1, exit code 0 means that the state is saved. If the run had just finished, the next job ends at once. A
# failed job is not queued again, because it would fail again.
if $time_is_up && ((code == 0)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
