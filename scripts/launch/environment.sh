# The environment of all processes of a run on a cluster; the launchers source it. Variables that are set already stay.

# A checkpoint at the next update on SIGTERM and SIGUSR1 (docs/launching.md).
export TORCHSCALE_SAVE_ON_SIGNAL=${TORCHSCALE_SAVE_ON_SIGNAL:-1}
# torch's launcher also forwards SIGUSR1 (its --signals-to-handle); it kills the processes some seconds after a signal.
export PET_SIGNALS_TO_HANDLE=${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}

# NCCL: say what goes wrong; end a process whose peers are gone instead of waiting for them.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}
# On machines with several networks, name the one between nodes, for NCCL and for gloo:
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# One thread of torch per core that a process has for itself: Slurm's --cpus-per-task, or else one.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export PYTHONUNBUFFERED=${PYTHONUNBUFFERED:-1}

# The programs of the virtual environment that scripts/setup.sh makes, if it is there.
if [ -d "${VENV:-$PWD/.venv}/bin" ]; then
  export PATH=${VENV:-$PWD/.venv}/bin:$PATH
fi
