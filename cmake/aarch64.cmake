# Cross-compiles for 64-bit Arm with Debian's compiler; programs run under QEMU. NIBBLE_ARM_ROOT holds
# the Arm builds of Highway and GoogleTest (`./dev test --arm` fetches them).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES NIBBLE_ARM_ROOT)
set(CMAKE_PREFIX_PATH ${NIBBLE_ARM_ROOT}/usr)
set(libraries ${NIBBLE_ARM_ROOT}/usr/lib/aarch64-linux-gnu)
# All the vector extensions there are: kernels choose the best of their targets, and have to leave SVE
# alone.
set(CMAKE_CROSSCOMPILING_EMULATOR
    qemu-aarch64;-cpu;max,sve-default-vector-length=64;-L;/usr/aarch64-linux-gnu;-E;LD_LIBRARY_PATH=${libraries}:/usr/aarch64-linux-gnu/lib)
