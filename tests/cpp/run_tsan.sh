#!/bin/sh
# Build the executor with clang's ThreadSanitizer and a few kernels, and run it with many threads.
#
#   tests/cpp/run_tsan.sh [BUILD_FOLDER]
#
# xsimd's headers come from XSIMD_INCLUDE, or out of the wheel of pythran for PYTHON.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
src=$here/../../src
build=${1:-${TMPDIR:-/tmp}/phiquant-tsan}
compiler=${CXX:-clang++}
jobs=$(getconf _NPROCESSORS_ONLN)
xsimd=${XSIMD_INCLUDE:-$("${PYTHON:-python3}" -c "import importlib.util as u, pathlib as p
print(p.Path(u.find_spec('pythran').origin).parent)")}
mkdir -p "$build"

# -O1: races are as many, and the kernels' templates compile in seconds.
printf '%s\n' "$src"/base/*.cpp "$src"/io/*.cpp "$src"/codecs/*.cpp "$src"/pipeline/*.cpp \
    "$here/small_table.cpp" "$here/executor_threads.cpp" |
    xargs -P "$jobs" -I {} sh -c '"$0" -std=c++20 -O1 -g -ffp-contract=off -fsanitize=thread \
        -I "$1" -isystem "$2" -c "$4" -o "$3/$(basename "$4" .cpp).o"' \
        "$compiler" "$src" "$xsimd" "$build" {}
"$compiler" -fsanitize=thread "$build"/*.o -o "$build/executor_threads"

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
TSAN_OPTIONS="halt_on_error=1 ${TSAN_OPTIONS:-}" "$build/executor_threads" "$results"
