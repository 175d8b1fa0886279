#!/usr/bin/env bash
# Raw text to a directory for fairseq-train; --help lists the options.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
"$root/scripts/setup.sh"
exec "${VENV:-$root/.venv}/bin/python" -m torchscale_fairseq data prepare-language "$@"
