# nibble::cuda: the GPU backend, only where there is a CUDA compiler.
#   NIBBLE_CUDA=ON    must be found        AUTO   used where found        OFF   not looked for
# CMAKE_CUDA_ARCHITECTURES chooses the processors, e.g. "80;90a".
if(NIBBLE_CUDA STREQUAL "OFF")
  return()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(NIBBLE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "NIBBLE_CUDA is ON, but no CUDA compiler was found; CUDACXX names one")
  endif()
  return()
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a-real)  # Hopper
endif()
enable_language(CUDA)
find_package(CUDAToolkit 12.4 REQUIRED)

file(GLOB nibble_cuda_sources CONFIGURE_DEPENDS cuda/*.cc cuda/*.cu)
add_library(nibble_cuda ${nibble_cuda_sources})
add_library(nibble::cuda ALIAS nibble_cuda)
target_include_directories(nibble_cuda PRIVATE ${PROJECT_SOURCE_DIR} ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(nibble_cuda PUBLIC nibble
                      PRIVATE $<BUILD_INTERFACE:nibble_flags> CUDA::cudart_static ${CMAKE_DL_LIBS})
# (-std: CMake 3.25 does not know that newer nvcc have C++20.) As on the CPU, no multiply and add
# contracts by itself, in neither side's code: where one rounding is wanted, the source says fmaf.
# 20208: double precision in code that both sides share.
target_compile_options(nibble_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20 --expt-relaxed-constexpr --fmad=false -Xcudafe --diag_suppress=20208
    -Xcompiler=-fPIC,-Wall,-Wextra,-Wno-unused-parameter,-ffp-contract=off>)
set_target_properties(nibble_cuda PROPERTIES VERSION ${PROJECT_VERSION} POSITION_INDEPENDENT_CODE ON
                      SOVERSION ${PROJECT_VERSION_MAJOR} EXPORT_NAME cuda)
