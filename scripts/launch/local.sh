#!/usr/bin/env bash
# Several processes on this machine; --help lists the options.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: scripts/launch/local.sh [--processes N] [--environment FILE] [--dry-run] COMMAND...

Runs a command of fairseq in several processes of this machine by torch's launcher: one per GPU, or on the CPU, over
gloo. On SIGTERM (exit code 143) or SIGUSR1 (75) it writes a checkpoint at the next update and ends; the same command
resumes from there.

  --processes N        processes (default: the GPUs there are, or 1)
  --environment FILE   sourced before (default: scripts/launch/environment.sh)
  --dry-run            print what would be run
  COMMAND              say: fairseq-train DATA --user-dir torchscale_fairseq --arch gpt_deepnorm ...
EOF
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$root/scripts/lib.sh"
processes=
environment=$root/scripts/launch/environment.sh
dry_run=
while [ $# -gt 0 ]; do
  case "$1" in
    --processes) [ $# -ge 2 ] || fail "$1 needs a value" && processes=$2 && shift 2 ;;
    --environment) [ $# -ge 2 ] && [ -f "$2" ] || fail "$1 needs a file" && environment=$2 && shift 2 ;;
    --dry-run) dry_run=yes && shift ;;
    -h | --help) usage && exit 0 ;;
    -*) fail "unknown option '$1'" ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || fail "it needs a command, such as fairseq-train DATA --user-dir torchscale_fairseq --arch gpt_deepnorm"
export VENV=${VENV:-$root/.venv}
source "$environment"
if [ -z "$processes" ]; then
  processes=$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')
fi
case "$processes" in
  *[!0-9]* | 0*) fail "--processes takes a whole number above 0, not '$processes'" ;;
esac

launch=(python "$root/scripts/launch/torchrun.py" --standalone --nproc-per-node "$processes" --no-python "$@")
show "${launch[@]}"
[ -n "$dry_run" ] || exec "${launch[@]}"
