#!/usr/bin/env bash
# Prepares a GPU machine and runs the tests marked gpu on it; --help lists the options.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: scripts/gpu.sh [--wheels DIR] [-- PYTEST-OPTIONS]

Prints the hardware and the versions, then runs the tests marked gpu.
Without options it prepares .venv by scripts/setup.sh, which needs a package index.

  --wheels DIR      for a machine without network: uses the torch that its python3 has, and installs the
                    rest from DIR: wheels of what requirements/fairseq.txt and requirements/dev.txt name
                    that is missing there, and the source archive of fairseq
EOF
}

fail() {
  echo "gpu.sh: $1; see --help" >&2
  exit 2
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
wheels=
while [ $# -gt 0 ]; do
  case "$1" in
    --wheels) [ $# -ge 2 ] && [ -d "$2" ] || fail "--wheels needs a directory" && wheels=$2 && shift 2 ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "unknown option '$1'; what is meant for pytest goes after --" ;;
  esac
done

if [ -z "$wheels" ]; then
  scripts/setup.sh
  venv=${VENV:-$PWD/.venv}
else
  venv=$PWD/.venv-gpu
  if [ ! -f "$venv/ready" ]; then
    python3 -c 'import torch' || fail "--wheels uses the torch of python3, which has none"
    python3 -m venv --system-site-packages "$venv"
    # A virtual environment made from another one does not see that one's packages by itself.
    python3 -c 'import site; print("\n".join(site.getsitepackages()))' \
      >"$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/python3.pth"
    install=("$venv/bin/python" -m pip install --quiet --no-index --no-deps --no-build-isolation --find-links "$wheels")
    find "$wheels" -type f -name '*.whl' -print0 | xargs -0 "${install[@]}"
    # With CUDA_HOME fairseq's build wants sources that its archive lacks.
    find "$wheels" -type f -name '*.tar.gz' -print0 | env -u CUDA_HOME xargs -0 -n 1 "${install[@]}"
    "${install[@]}" --editable .
    touch "$venv/ready"
  fi
fi

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
"$venv/bin/python" - <<'EOF'
import platform

import fairseq
import torch

print(f"python {platform.python_version()}, torch {torch.__version__}, fairseq {fairseq.__version__}")
EOF
exec "$venv/bin/python" -m pytest -m gpu "$@"
