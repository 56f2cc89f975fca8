#!/bin/sh
# Build the fuzz targets with clang's libFuzzer, ASan and UBSan, and run each for some seconds.
#
#   tests/fuzz/run.sh [SECONDS=20] [BUILD_FOLDER]
#
# New inputs and crashes stay in the build folder; the seeds in corpus/ are not touched.
set -eu

seconds=${1:-20}
here=$(cd "$(dirname "$0")" && pwd)
src=$here/../../src
build=${2:-${TMPDIR:-/tmp}/phiquant-fuzz}
compiler=${CXX:-clang++}
mkdir -p "$build"

for target in safetensors gguf onnx; do
    echo "building fuzz_$target"
    "$compiler" -std=c++20 -O1 -g -Wall -Wextra -I "$src" \
        -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
        "$here/fuzz_$target.cpp" "$src"/formats/*.cpp "$src/tensor/dtype.cpp" \
        -o "$build/fuzz_$target"
done
for target in safetensors gguf onnx; do
    echo "running fuzz_$target for $seconds seconds"
    mkdir -p "$build/corpus_$target"
    # A hostile count that reaches an allocator shows as an allocation of more than 64 MiB.
    (cd "$build" && "./fuzz_$target" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=1024 \
        -malloc_limit_mb=64 -max_len=4096 -dict="$here/$target.dict" -print_final_stats=1 \
        "corpus_$target" "$here/corpus/$target")
done
