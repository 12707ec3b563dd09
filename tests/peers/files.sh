#!/bin/sh
# files.sh PYTHON TESTS: the gguf and safetensors packages read the files that the tests write.
set -eu
python=$1 tests=$2
cd "$(dirname "$0")/../reference/files"
[ -x "$python" ] || { echo "$python is missing: ./dev peers"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for test in gguf_test safetensors_test; do
  NIBBLE_WRITE_FILES=$work "$tests/$test" --gtest_filter='*ForTheReferencePackage*' --gtest_brief=1
done
[ -n "$(ls "$work")" ] || { echo "the tests wrote nothing"; exit 1; }
PYTHONDONTWRITEBYTECODE=1 "$python" check_files.py "$work"
