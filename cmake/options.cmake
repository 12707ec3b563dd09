option(NIBBLE_BUILD_MODEL "Build nibble::model: architectures, tokenizers, evaluation" ON)
option(NIBBLE_BUILD_TOOLS "Build the nibble command" ${PROJECT_IS_TOP_LEVEL})
option(NIBBLE_BUILD_TESTS "Build the tests" ${PROJECT_IS_TOP_LEVEL})
option(NIBBLE_BUILD_BENCHMARKS "Build the benchmarks" ${PROJECT_IS_TOP_LEVEL})
option(NIBBLE_BUILD_EXAMPLES "Build the examples" ${PROJECT_IS_TOP_LEVEL})
option(NIBBLE_INSTALL "Make the install rules" ${PROJECT_IS_TOP_LEVEL})
option(NIBBLE_BUILD_FUZZERS "Build the libFuzzer executables (clang only)" OFF)
option(NIBBLE_WERROR "Treat warnings as errors" OFF)
set(NIBBLE_CUDA OFF CACHE STRING "Build nibble::cuda: ON, OFF, or AUTO where a CUDA compiler is found")
set_property(CACHE NIBBLE_CUDA PROPERTY STRINGS ON OFF AUTO)
set(NIBBLE_SANITIZE "" CACHE STRING "Sanitizers, e.g. address,undefined or thread")

if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)

# Flags of our own code only; never exported. Contraction is off because the bytes that are written
# may not depend on whether a target has a fused multiply-add.
add_library(nibble_flags INTERFACE)
target_compile_options(nibble_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wno-unused-parameter;-ffp-contract=off;-fvisibility-inlines-hidden>
  $<$<AND:$<BOOL:${NIBBLE_WERROR}>,$<COMPILE_LANGUAGE:CXX>>:-Werror>)
if(NIBBLE_SANITIZE)
  # GCC takes the "undefined" vectors of its own intrinsics for uninitialised reads here, and warns
  # of the fences in Highway's thread pool, which its thread sanitizer does not model.
  target_compile_options(nibble_flags INTERFACE -fsanitize=${NIBBLE_SANITIZE} -fno-omit-frame-pointer
                         -fno-sanitize-recover=all -O1 -g1
                         -Wno-uninitialized
                         "$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized;-Wno-tsan>")
  target_link_options(nibble_flags INTERFACE -fsanitize=${NIBBLE_SANITIZE})
endif()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  # The kernels keep vectors in structs, which those of SVE, whose length is not known to the compiler,
  # cannot be in; NEON serves those processors too. What NEON with bf16 adds, no kernel uses.
  target_compile_definitions(nibble_flags INTERFACE
    "HWY_DISABLED_TARGETS=(HWY_NEON_BF16|HWY_SVE|HWY_SVE2|HWY_SVE_256|HWY_SVE2_128)")
elseif(NIBBLE_SANITIZE)
  # Each instruction set compiles slowly here: one of each vector length (16, 32 and 64 bytes) will do.
  target_compile_definitions(nibble_flags INTERFACE
    "HWY_DISABLED_TARGETS=(HWY_SSSE3|HWY_SSE4|HWY_AVX3|HWY_AVX3_DL|HWY_AVX3_ZEN4)")
endif()
