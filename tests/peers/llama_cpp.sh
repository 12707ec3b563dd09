#!/bin/sh
# llama_cpp.sh PYTHON NIBBLE: llama.cpp runs the reference model as nibble writes it. From f16 it must
# generate PyTorch's tokens; every other type must have llama-quantize's tensor types, load and go on
# with a text.
set -eu
python=$1 nibble=$2
here=$(cd "$(dirname "$0")" && pwd)
model=$here/../../examples/reference-model
[ -x "$python" ] || { echo "$python is missing: ./dev peers"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$nibble" convert "$model" -o "$work/model.gguf" --quiet
"$python" "$here/llama_cpp_check.py" "$work/model.gguf" "$model/expected.json"
"$python" "$here/llama_cpp_ladder.py" "$nibble" "$model"
