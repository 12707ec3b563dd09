#!/bin/sh
# hf_models.sh PYTHON NIBBLE: llama.cpp computes from nibble's GGUF what numpy computes from the
# Hugging Face model it was made of, for every architecture and kind of tokenizer; and so does nibble.
set -eu
python=$1 nibble=$2
here=$(cd "$(dirname "$0")" && pwd)
[ -x "$python" ] || { echo "$python is missing: ./dev peers"; exit 77; }
"$python" "$here/hf_models_check.py" "$here/../../examples/reference-model/calibration.txt" \
  "$nibble"
