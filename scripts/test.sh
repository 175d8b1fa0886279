#!/usr/bin/env bash
# Sets up like the other scripts and runs the tests; --help lists the options.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: scripts/test.sh [PYTEST ARGUMENTS]
       scripts/test.sh --export
       scripts/test.sh [--torch VERSION] [--python 3.N]

Installs everything into .venv and runs the tests. With --torch or --python it makes another environment in build/ and
runs there the tests of the core, the parity tests and one command line run per family of models. An interpreter that
this machine lacks, or a package that the index lacks, is named and skipped.

  --export          install the packages that read exported models as well, and run the tests that need them
  --torch VERSION   test with this version of torch; "oldest" is that of pyproject.toml, "newest" the package index's
                    for the interpreter
  --python 3.N      test with this interpreter, from PATH or pyenv; if it is not there, --torch is tested with the
                    interpreter that setup.sh chooses
EOF
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/lib.sh"
cd "$root"
export=
torch=
python=
while [ $# -gt 0 ]; do
  case "$1" in
    --torch | --python) [ $# -ge 2 ] && [ -n "$2" ] || fail "$1 needs a value" ;;
  esac
  case "$1" in
    --export) export=yes && shift ;;
    --torch) torch=$2 && shift 2 ;;
    --python) python=$2 && shift 2 ;;
    -h | --help) usage && exit 0 ;;
    *) break ;;
  esac
done

quick=(-m "not slow and not gpu" --numprocesses 2 --dist loadfile)
if [ -z "$export$torch$python" ]; then
  scripts/setup.sh
  [ $# -gt 0 ] || set -- "${quick[@]}"
  exec "${VENV:-$root/.venv}/bin/python" -m pytest "$@"
fi
[ $# -eq 0 ] || fail "unknown argument '$1' next to --export, --torch or --python"
[ -z "$export" ] || [ -z "$torch$python" ] || fail "--export goes without --torch and --python"

skip() {
  echo "test.sh: skipped: $1"
  exit 0
}

# Runs a command that installs packages. If the index lacks one for this interpreter, the tests are skipped.
install() {
  local log=$root/build/install.log lacking
  mkdir -p "$root/build"
  if ! "$@" 2>&1 | tee "$log"; then
    lacking=$(sed -n 's/.*No matching distribution found for \([^ ]*\).*/\1/p' "$log" | head -n 1)
    [ -z "$lacking" ] || skip "the package index has no $lacking for ${PYTHON:-this interpreter}"
    exit 1
  fi
}

if [ -n "$export" ]; then
  scripts/setup.sh
  python=${VENV:-$root/.venv}/bin/python
  install "$python" -m pip --disable-pip-version-check install --quiet -c requirements/constraints.txt \
    -r requirements/export.txt
  exec "$python" -m pytest tests/export tests/tools/test_examples.py "${quick[@]}"
fi

# Prints the path of python3.N, on PATH or among pyenv's versions.
interpreter() {
  local candidate
  for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    if "$candidate" -c '' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

PYTHON=${python:+$(interpreter "$python")}
if [ -n "$python" ] && [ -z "$PYTHON" ]; then
  [ -n "$torch" ] || skip "python$python is not on this machine"
  echo "test.sh: skipped: python$python is not on this machine; testing torch $torch with another interpreter"
fi
case "$torch" in
  oldest) torch=$(sed -n 's/.*"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml) ;;
  newest)
    torch=$("${PYTHON:-python3}" -m pip index versions torch 2>/dev/null | sed -n '1s/torch (\(.*\))/\1/p') || true
    [ -n "$torch" ] || skip "the package index names no torch for ${PYTHON:-python3}"
    ;;
esac
export PYTHON TORCH=$torch VENV=$root/build/venv${torch:+-torch$torch}${PYTHON:+-python$python}
install scripts/setup.sh
"$VENV/bin/python" -c 'import sys, torch
print(f"test.sh: torch {torch.__version__} on Python {sys.version.split()[0]}")'
status=0
"$VENV/bin/python" -m pytest tests/core tests/parity "${quick[@]}" || status=1
"$VENV/bin/python" -m pytest tests/plugin -m family --numprocesses 2 --dist loadfile || status=1
exit $status
