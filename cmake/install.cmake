# What `cmake --install` puts down: libraries, headers, the command, and how others find them.
if(NOT NIBBLE_INSTALL)
  return()
endif()
include(CMakePackageConfigHelpers)

set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/nibble)
foreach(library nibble nibble_model nibble_cuda)
  if(TARGET ${library})
    install(TARGETS ${library} EXPORT ${library}-targets)
    install(EXPORT ${library}-targets NAMESPACE nibble:: DESTINATION ${config_dir})
  endif()
endforeach()
install(DIRECTORY include/nibble DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN *.h PATTERN *.def)
if(TARGET nibble_command)
  install(TARGETS nibble_command)
  install(FILES examples/tasks/basics.jsonl DESTINATION ${CMAKE_INSTALL_DATADIR}/nibble/tasks)
endif()

configure_package_config_file(cmake/nibble-config.cmake.in nibble-config.cmake
                              INSTALL_DESTINATION ${config_dir})
write_basic_package_version_file(nibble-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/nibble-config.cmake
              ${PROJECT_BINARY_DIR}/nibble-config-version.cmake DESTINATION ${config_dir})

# The .pc file finds the prefix from where it lies, so that an installed tree can be moved.
file(RELATIVE_PATH pc_to_prefix /p/${CMAKE_INSTALL_LIBDIR}/pkgconfig /p)
configure_file(cmake/nibble.pc.in nibble.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/nibble.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
