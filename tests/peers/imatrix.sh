#!/bin/sh
# imatrix.sh PYTHON NIBBLE: the statistics of `nibble calibrate` are those that llama.cpp sees when it
# runs the same text.
set -eu
python=$1 nibble=$2
here=$(cd "$(dirname "$0")" && pwd)
model=$here/../../examples/reference-model
[ -x "$python" ] || { echo "$python is missing: ./dev peers"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$nibble" convert "$model" -o "$work/model.gguf" --quiet
"$nibble" calibrate "$work/model.gguf" "$model/calibration.txt" -o "$work/imatrix.gguf" \
  --calibration-windows 8 --quiet
"$python" "$here/imatrix_check.py" "$work/model.gguf" "$model/calibration.txt" "$work/imatrix.gguf"
