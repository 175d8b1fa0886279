#!/usr/bin/env bash
# Sets up like the other scripts and runs the tests; arguments go to pytest.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/scripts/setup.sh"
cd "$root"
if [ $# -eq 0 ]; then
  set -- -m "not slow and not gpu" --numprocesses 2 --dist loadfile
fi
exec "${VENV:-$root/.venv}/bin/python" -m pytest "$@"
