# What the Slurm launchers share: they source it, in the repository.

source scripts/lib.sh

# Sets launch, the beginning of the command that starts all tasks of the job.
prepare() {
  source "${LAUNCH_ENVIRONMENT:-scripts/launch/environment.sh}"
  local nodes="" first=localhost
  if [ -n "${SLURM_JOB_NODELIST:-}" ]; then
    nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    first=${nodes%%$'\n'*}
  fi
  export MASTER_ADDR=$first MASTER_PORT=$((10000 + ${SLURM_JOB_ID:-0} % 50000))
  trap 'echo "${0##*/}: SIGTERM; waiting for the checkpoint"' TERM
  # Each task gets the variables by which torch finds its peers, and becomes the command, so that signals reach it.
  launch=(srun --kill-on-bad-exit=1 bash -c
    'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; exec "$@"' task)
}
