#!/bin/sh
# folders.sh PYTHON NIBBLE: Hugging Face folders in every layout, opened by the libraries that own
# them. PYTHON stands for its environment's sibling venv-folders, which holds gigabytes and is made
# by hand: python3 -m venv build/venv-folders, and its pip install -r
# tests/reference/requirements-folders.txt. Without it, exit 77.
set -eu
python=$(dirname "$(dirname "$(dirname "$1")")")/venv-folders/bin/python
nibble=$2
here=$(cd "$(dirname "$0")" && pwd)
if ! "$python" -c 'import aqlm, bitsandbytes, compressed_tensors, gptqmodel, transformers' 2>/dev/null; then
  echo "skipped: build/venv-folders does not hold tests/reference/requirements-folders.txt"
  exit 77
fi
exec "$python" "$here/folders_check.py" "$nibble" "$here/../../examples/reference-model"
