#!/bin/sh
# perplexity.sh PYTHON NIBBLE: nibble's perplexity of every type of the reference model is llama.cpp's.
set -eu
python=$1 nibble=$2
here=$(cd "$(dirname "$0")" && pwd)
model=$here/../../examples/reference-model
[ -x "$python" ] || { echo "$python is missing: ./dev peers"; exit 77; }
"$python" "$here/perplexity.py" "$nibble" "$model" "$model/evaluation.txt" --windows 24
