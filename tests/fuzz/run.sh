#!/bin/sh
# Build the fuzz targets with clang's libFuzzer, ASan and UBSan, and run each for some seconds.
#
#   tests/fuzz/run.sh [SECONDS=20] [BUILD_FOLDER]
#   TARGETS="safetensors gguf onnx kernels" tests/fuzz/run.sh 600
#
# Without TARGETS the readers run; `kernels` holds every instruction set's table against the
# baseline's, and takes minutes to build. Its xsimd comes from XSIMD_INCLUDE, or out of the wheel of
# pythran for PYTHON. New inputs and crashes stay in the build folder; the seeds in corpus/ are not
# touched.
set -eu

seconds=${1:-20}
here=$(cd "$(dirname "$0")" && pwd)
src=$here/../../src
build=${2:-${TMPDIR:-/tmp}/phiquant-fuzz}
targets=${TARGETS:-safetensors gguf onnx}
compiler=${CXX:-clang++}
jobs=$(getconf _NPROCESSORS_ONLN)
sanitizers=-fsanitize=fuzzer,address,undefined
flags="-std=c++20 -O1 -g -Wall -Wextra -ffp-contract=off -I $src -fno-sanitize-recover=all"
flags="$flags -fsanitize=fuzzer-no-link,address,undefined"
mkdir -p "$build/readers" "$build/kernels"

# compile OBJECT SOURCE [FLAG ...]: a line for compile_all.
compile() {
    object=$1 source=$2
    shift 2
    echo "$compiler $flags $* -c $source -o $object"
}
compile_all() { xargs -P "$jobs" -I {} sh -c '{}'; }

readers=
for target in $targets; do
    test "$target" = kernels || readers="$readers $target"
done
if [ -n "$readers" ]; then
    echo "building$readers"
    {
        for source in "$src"/formats/*.cpp "$src/tensor/dtype.cpp"; do
            compile "$build/readers/$(basename "$source" .cpp).o" "$source"
        done
        for target in $readers; do
            compile "$build/fuzz_$target.o" "$here/fuzz_$target.cpp"
        done
    } | compile_all
    for target in $readers; do
        "$compiler" $sanitizers "$build/fuzz_$target.o" "$build"/readers/*.o -o "$build/fuzz_$target"
    done
fi
case " $targets " in *" kernels "*)
    echo "building kernels"
    xsimd=${XSIMD_INCLUDE:-$("${PYTHON:-python3}" -c "import importlib.util as u, pathlib as p
print(p.Path(u.find_spec('pythran').origin).parent)")}
    # As cmake/kernels.cmake has them.
    kernels() {
        arch=$1
        shift
        for source in "$src"/kernels/instantiate*.cpp; do
            compile "$build/kernels/${arch}_$(basename "$source" .cpp).o" "$source" \
                "-isystem $xsimd -DPHIQUANT_KERNEL_ARCH=$arch $*"
        done
    }
    {
        case $(uname -m) in
        x86_64)
            kernels sse2
            kernels sse4_1 -msse4.1
            kernels avx2 -mavx2
            kernels avx512bw -mavx512f -mavx512cd -mavx512vl -mavx512dq -mavx512bw
            ;;
        *) kernels neon64 ;;
        esac
        for source in "$src/kernels/dispatch.cpp" "$src/kernels/iq_grids.cpp" "$src"/base/*.cpp \
            "$src"/codecs/*.cpp "$src/pipeline/stages.cpp" "$here/fuzz_kernels.cpp"; do
            compile "$build/kernels/$(basename "$source" .cpp).o" "$source" "-isystem $xsimd"
        done
    } | compile_all
    "$compiler" $sanitizers "$build"/kernels/*.o -o "$build/fuzz_kernels"
    ;;
esac

for target in $targets; do
    echo "running fuzz_$target for $seconds seconds"
    mkdir -p "$build/corpus_$target"
    dictionary=
    test ! -f "$here/$target.dict" || dictionary="-dict=$here/$target.dict"
    # A hostile count that reaches an allocator shows as an allocation of more than 64 MiB.
    (cd "$build" && "./fuzz_$target" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=1024 \
        -malloc_limit_mb=64 -max_len=4096 $dictionary -print_final_stats=1 \
        "corpus_$target" "$here/corpus/$target")
done
