#!/usr/bin/env bash
# Prepares a GPU machine and runs the tests marked gpu and the benchmarks on it; --help lists the options.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: scripts/gpu.sh [--wheels DIR] [--output FILE.md] [-- COMMAND...]

Prints the hardware and the versions, runs the tests marked gpu, and compares training with official
TorchScale (benchmarks/compare.py) and a layer of retention with official TorchScale's, flash-linear-attention's,
where that is installed, and attention (benchmarks/retention.py), and dilated attention with dense
(benchmarks/dilated.py). With a COMMAND, runs that instead, in the prepared environment.
Without --wheels it prepares .venv by scripts/setup.sh, which needs a package index.

  --wheels DIR      for a machine without network: uses the torch that its python3 has, and installs the
                    rest from DIR: wheels of what requirements/fairseq.txt, requirements/dev.txt and
                    benchmarks/ name that is missing there, and the source archive of fairseq
  --output FILE.md  also write the table of the training benchmark, that of retention to FILE-retention.md, and that
                    of dilated attention to FILE-dilated.md, with its numbers in FILE-dilated.json
EOF
}

fail() {
  echo "gpu.sh: $1; see --help" >&2
  exit 2
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
wheels=
output=
while [ $# -gt 0 ]; do
  case "$1" in
    --wheels) [ $# -ge 2 ] && [ -d "$2" ] || fail "--wheels needs a directory" && wheels=$2 && shift 2 ;;
    --output) [ $# -ge 2 ] || fail "--output needs a file" && output=$2 && shift 2 ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "unknown option '$1'; a command to run goes after --" ;;
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
    find "$wheels" -type f -name '*.whl' -print0 | xargs -r -0 "${install[@]}"
    # With CUDA_HOME fairseq's build wants sources that its archive lacks.
    find "$wheels" -type f -name '*.tar.gz' -print0 | env -u CUDA_HOME xargs -r -0 -n 1 "${install[@]}"
    "${install[@]}" --editable .
    touch "$venv/ready"
  fi
fi

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
"$venv/bin/python" -m torchscale_fairseq environment
PATH=$venv/bin:$PATH
if [ $# -gt 0 ]; then exec "$@"; fi
python -m pytest -m gpu tests/gpu
python -m benchmarks.compare train --device cuda --compile ${output:+--output "$output"}
python -m benchmarks.retention --device cuda ${output:+--output "${output%.md}-retention.md"}
exec python -m benchmarks.dilated --device cuda ${output:+--output "${output%.md}-dilated.md" --json "${output%.md}-dilated.json"}
