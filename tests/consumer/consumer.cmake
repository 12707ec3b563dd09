# Installs the build into a prefix of its own and builds consumers against it, and one against the
# sources, with nibble as a shared library. Not under sanitizers: their flags are not exported.
if(NIBBLE_SANITIZE OR NOT NIBBLE_INSTALL OR NOT NIBBLE_BUILD_EXAMPLES)
  return()
endif()
set(consumer_prefix ${CMAKE_CURRENT_BINARY_DIR}/prefix)
set(consumer_options -DEXAMPLES=${PROJECT_SOURCE_DIR}/examples
    -DCMAKE_BUILD_TYPE=${CMAKE_BUILD_TYPE} -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}
    -DCMAKE_C_COMPILER=${CMAKE_C_COMPILER} -DCMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER})

add_test(NAME consumer.install
         COMMAND ${CMAKE_COMMAND} --install ${PROJECT_BINARY_DIR} --prefix ${consumer_prefix})
set_tests_properties(consumer.install PROPERTIES FIXTURES_SETUP consumer_prefix)

function(add_consumer name build)
  add_test(NAME consumer.${name}
           COMMAND ${CMAKE_CTEST_COMMAND}
                   --build-and-test ${CMAKE_CURRENT_SOURCE_DIR}/consumer ${build}
                   --build-generator ${CMAKE_GENERATOR} --build-makeprogram ${CMAKE_MAKE_PROGRAM} --build-noclean
                   --build-options ${consumer_options} ${ARGN})
endfunction()

add_consumer(find_package ${CMAKE_CURRENT_BINARY_DIR}/find_package
             -DCMAKE_PREFIX_PATH=${consumer_prefix} -DEXPECT_MODEL=$<TARGET_EXISTS:nibble_model>)
# A sibling of this build, at its depth: with paths relative to the build, as compiler caches can
# rewrite them, the objects are those of this build.
add_consumer(add_subdirectory ${PROJECT_BINARY_DIR}-consumer
             -DNIBBLE_SOURCE_DIR=${PROJECT_SOURCE_DIR} -DNIBBLE_WERROR=${NIBBLE_WERROR}
             -DBUILD_SHARED_LIBS=ON)
add_test(NAME consumer.pkg_config
         COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/consumer/pkg_config.sh ${consumer_prefix}
                 ${PROJECT_SOURCE_DIR}/examples ${CMAKE_CURRENT_BINARY_DIR}/pkg_config)
set_tests_properties(consumer.pkg_config PROPERTIES
                     ENVIRONMENT "CC=${CMAKE_C_COMPILER};CXX=${CMAKE_CXX_COMPILER}")
set_tests_properties(consumer.find_package consumer.pkg_config PROPERTIES
                     FIXTURES_REQUIRED consumer_prefix)
