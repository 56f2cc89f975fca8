# The static library `phiquant_kernels`: a few translation units for each instruction set, chosen
# among at run time. Needs the interface targets phiquant_flags and phiquant_xsimd.

add_library(phiquant_kernels STATIC
  ${PROJECT_SOURCE_DIR}/src/kernels/dispatch.cpp
  ${PROJECT_SOURCE_DIR}/src/kernels/iq_grids.cpp)
target_include_directories(phiquant_kernels PUBLIC ${PROJECT_SOURCE_DIR}/src)
target_link_libraries(phiquant_kernels PUBLIC phiquant_flags PRIVATE phiquant_xsimd)
set_target_properties(phiquant_kernels PROPERTIES
  POSITION_INDEPENDENT_CODE ON
  INTERPROCEDURAL_OPTIMIZATION OFF)  # it would mix the instruction sets

# The kernels' source, compiled once more with the flags in ARGN.
function(phiquant_add_arch arch)
  set(target phiquant_kernels_${arch})
  add_library(${target} OBJECT
    ${PROJECT_SOURCE_DIR}/src/kernels/instantiate.cpp
    ${PROJECT_SOURCE_DIR}/src/kernels/instantiate_affine.cpp
    ${PROJECT_SOURCE_DIR}/src/kernels/instantiate_best.cpp
    ${PROJECT_SOURCE_DIR}/src/kernels/instantiate_small.cpp)
  target_compile_definitions(${target} PRIVATE PHIQUANT_KERNEL_ARCH=${arch})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(${target} PRIVATE phiquant_flags phiquant_xsimd)
  if(MSVC)
    target_compile_options(${target} PRIVATE /fp:precise ${ARGN})
  else()
    # No contraction: a fused multiply-add rounds once where the reference rounds twice. Narrowing
    # and packing loops count on the vectorizer, hence -O3 in every optimized build. GCC 12 warns
    # of the undefined operands inside its own AVX-512 intrinsics (its bug 105593).
    target_compile_options(${target} PRIVATE
      -ffp-contract=off -fno-fast-math $<$<NOT:$<CONFIG:Debug>>:-O3>
      $<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized$<SEMICOLON>-Wno-maybe-uninitialized> ${ARGN})
  endif()
  set_target_properties(${target} PROPERTIES
    POSITION_INDEPENDENT_CODE ON
    INTERPROCEDURAL_OPTIMIZATION OFF)
  target_sources(phiquant_kernels PRIVATE $<TARGET_OBJECTS:${target}>)
endfunction()

# What the compiler is asked for, not CMAKE_SYSTEM_PROCESSOR, which names the building machine.
include(CheckCXXSourceCompiles)
check_cxx_source_compiles("
  #if !defined(__x86_64__) && !defined(_M_X64)
  #error
  #endif
  int main() {}" PHIQUANT_TARGET_X86_64)

if(PHIQUANT_TARGET_X86_64)
  if(MSVC)
    phiquant_add_arch(sse2)
    phiquant_add_arch(avx2 /arch:AVX2)
    phiquant_add_arch(avx512bw /arch:AVX512)
  else()
    phiquant_add_arch(sse2)
    phiquant_add_arch(sse4_1 -msse4.1)
    phiquant_add_arch(avx2 -mavx2)  # not -mfma
    phiquant_add_arch(avx512bw -mavx512f -mavx512cd -mavx512vl -mavx512dq -mavx512bw)
  endif()
else()
  phiquant_add_arch(neon64)
endif()
