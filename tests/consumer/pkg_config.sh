#!/bin/sh
# pkg_config.sh PREFIX EXAMPLES BUILD: builds and runs the examples with nothing but pkg-config.
set -eu
prefix=$1 examples=$2 build=$3
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name nibble.pc)")
export PKG_CONFIG_PATH
mkdir -p "$build"
flags=$(pkg-config --static --cflags --libs nibble)
# The flags are words on purpose.
# shellcheck disable=SC2086
"${CXX:-c++}" -std=c++20 "$examples/quantize_buffer.cc" -o "$build/consumer" $flags
# shellcheck disable=SC2086
"${CC:-cc}" -std=c99 -pedantic -Wall -Werror "$examples/c_api.c" -o "$build/consumer_c" $flags
export LD_LIBRARY_PATH="$(dirname "$PKG_CONFIG_PATH")"
"$build/consumer"
"$build/consumer_c"
