#!/usr/bin/env bash
# Makes the virtual environment that the other scripts use; called again, it has nothing to do.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: scripts/setup.sh

Installs the packages pinned in requirements/, fairseq and this project into a virtual environment.
A second call returns at once, until requirements/ or this script change.

environment:
  VENV     absolute path of the virtual environment (default: .venv next to README.md)
  PYTHON   the interpreter to make it with (default: the first of python3.11, 3.12, 3.13, 3.10, python3)
  TORCH    a version of torch instead of the pinned one, as scripts/test.sh --torch needs it
EOF
}

fail() {
  echo "setup.sh: $1" >&2
  exit 1
}

case "${1:-}" in
  "") ;;
  -h | --help) usage && exit 0 ;;
  *) fail "unknown argument '$1'; it takes none, see --help" ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}
stamp=$venv/.torchscale_fairseq
fairseq='fairseq-fixed==0.12.3.1'

[ "${venv:0:1}" = / ] || fail "VENV=$venv must be an absolute path"

python_version() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

is_supported() {
  case "$(python_version "$1")" in
    3.10 | 3.11 | 3.12 | 3.13) ;;
    *) return 1 ;;
  esac
}

fingerprint() {
  { cat "$root"/requirements/*.txt "$root/pyproject.toml" "${BASH_SOURCE[0]}"
    echo "$root ${TORCH:-}"; "$venv/bin/python" --version; } | cksum
}

if [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(fingerprint)" = "$(cat "$stamp")" ] &&
  { [ -z "${PYTHON:-}" ] || [ "$(python_version "$PYTHON")" = "$(python_version "$venv/bin/python")" ]; }; then
  exit 0
fi

if [ -n "${PYTHON:-}" ]; then
  command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not a program on this machine"
  is_supported "$PYTHON" ||
    fail "PYTHON=$PYTHON is Python $(python_version "$PYTHON"); fairseq and torch need 3.10 to 3.13"
  python=$PYTHON
else
  python=
  for candidate in python3.11 python3.12 python3.13 python3.10 python3 python; do
    if is_supported "$candidate"; then
      python=$candidate
      break
    fi
  done
  [ -n "$python" ] || fail "found no Python 3.10 to 3.13; install one, or name it: PYTHON=/path/to/python3.11"
fi

if [ -e "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
  fail "VENV=$venv exists and is not a virtual environment; name another place"
fi
if is_supported "$venv/bin/python"; then
  if [ -n "${PYTHON:-}" ] && [ "$(python_version "$python")" != "$(python_version "$venv/bin/python")" ]; then
    fail "$venv has Python $(python_version "$venv/bin/python"), not PYTHON=$PYTHON; remove it, or set VENV"
  fi
  python=$venv/bin/python
fi

compiler=${CXX:-c++}
command -v "${compiler%% *}" >/dev/null ||
  fail "found no C++ compiler ('$compiler'), which fairseq needs; install one (Debian: apt-get install g++)"
"$python" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
  fail "found no Python.h for $python, which fairseq needs; install it (Debian: apt-get install python3-dev)"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "$python has no venv module; install it (Debian: apt-get install python3-venv)"

if ! is_supported "$venv/bin/python"; then
  echo "setup: making $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv" || fail "could not make the virtual environment $venv"
fi
python=$venv/bin/python
rm -f "$stamp"

requirements=$root/requirements
if [ -n "${TORCH:-}" ]; then
  requirements=$venv/requirements
  mkdir -p "$requirements"
  cp "$root"/requirements/*.txt "$requirements"
  sed -i "s/^torch==.*/torch==$TORCH/" "$requirements/base.txt"
  sed -i '/^sympy==/d' "$requirements/constraints.txt" # torch 2.6 pins another
  export PIP_CONSTRAINT=/dev/null # the version that is named here counts, not the newest that the machine allows
fi

quiet=--quiet
if [ -t 1 ]; then quiet=; fi # in a terminal, pip's bars show that the big downloads get on

pip_install() {
  "$python" -m pip --disable-pip-version-check ${quiet:+"$quiet"} install -c "$requirements/constraints.txt" "$@" ||
    fail "pip could not install: ${*//$root\//}"
}

echo "setup: installing the packages of requirements/ (some minutes the first time)"
pip_install -r "$requirements/build.txt"
pip_install --no-build-isolation -r "$requirements/base.txt" -r "$requirements/fairseq.txt" \
  -r "$requirements/data.txt" -r "$requirements/dev.txt"
echo "setup: building $fairseq (two minutes the first time)"
# With CUDA_HOME fairseq's build wants sources that its archive lacks.
(unset CUDA_HOME && pip_install --no-build-isolation --no-deps "$fairseq")
if ! "$python" -c 'import torch, fairseq.libnat' 2>/dev/null; then
  echo "setup: building it again, since pip kept a build for another torch"
  (unset CUDA_HOME && pip_install --no-build-isolation --no-deps --no-cache-dir --force-reinstall "$fairseq")
fi
"$python" "$root/scripts/name_interpreter.py" "$venv"/bin/fairseq-*
pip_install --no-deps -r "$requirements/benchmarks.txt"
echo "setup: installing this project"
pip_install --no-build-isolation --no-deps --editable "$root"
# Next to fairseq, where it looks for --user-dir torchscale_fairseq from any folder, and type checkers look for packages.
ln -sfn "$root/torchscale_fairseq" "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torchscale_fairseq"

fingerprint >"$stamp"
echo "setup: done; to use it yourself: source ${venv/#$PWD\//}/bin/activate"
