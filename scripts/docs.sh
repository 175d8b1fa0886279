#!/usr/bin/env bash
# Builds the documentation as a site, or shows it; --help lists the options.
set -euo pipefail

usage() {
  cat <<'EOT'
usage: scripts/docs.sh [--serve]

Builds docs/ and the API pages into build/site. A broken link, a page missing from mkdocs.yml or a docstring that cannot
be found ends the build with exit code 1. The first call installs requirements/docs.txt into build/docs-venv.

  --serve   show the site at http://127.0.0.1:8000 and rebuild it on every change

environment:
  PYTHON   the interpreter to make build/docs-venv with (default: that of .venv, or python3)
EOT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/lib.sh"
command=build
case "${1:-}" in
  "") ;;
  --serve) command=serve ;;
  -h | --help) usage && exit 0 ;;
  *) fail "unknown argument '$1'; see --help" ;;
esac

cd "$root"
venv=build/docs-venv
requirements=requirements/docs.txt
python=${PYTHON:-${VENV:-.venv}/bin/python}
command -v "$python" >/dev/null || python=python3
if ! cmp -s "$requirements" "$venv/installed.txt"; then
  echo "docs: installing $requirements into $venv"
  "$python" -m venv --clear "$venv"
  "$venv/bin/python" -m pip --disable-pip-version-check --quiet install -r "$requirements"
  cp "$requirements" "$venv/installed.txt"
fi
NO_MKDOCS_2_WARNING=1 exec "$venv/bin/mkdocs" "$command"
