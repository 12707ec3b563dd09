#!/bin/sh
# llama_cpp.sh PYTHON NIBBLE TYPE: llama.cpp runs the reference model as nibble writes it; from F16
# it must generate PyTorch's tokens, from a quantized type any.
set -eu
python=$1 nibble=$2 type=$3
here=$(cd "$(dirname "$0")" && pwd)
model=$here/../../examples/reference-model
[ -x "$python" ] || { echo "$python is missing: ./dev peers"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ "$type" = F16 ]; then
  "$nibble" convert "$model" -o "$work/model.gguf" --quiet
  "$python" "$here/llama_cpp_check.py" "$work/model.gguf" "$model/expected.json"
else
  "$nibble" quantize "$model" -o "$work/model.gguf" --type "$type" --quiet
  "$python" "$here/llama_cpp_check.py" "$work/model.gguf" "$model/expected.json" --loose
fi
