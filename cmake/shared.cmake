# What a shared build of the libraries needs beyond BUILD_SHARED_LIBS.
foreach(library nibble nibble_model nibble_cuda)
  if(TARGET ${library})
    # Objects are the same in static and shared libraries: nothing asks which it goes into.
    set_target_properties(${library} PROPERTIES POSITION_INDEPENDENT_CODE ON DEFINE_SYMBOL "")
    # A shared library shows the names of nibble alone, whatever it was linked with.
    get_target_property(type ${library} TYPE)
    if(type STREQUAL SHARED_LIBRARY AND CMAKE_SYSTEM_NAME STREQUAL Linux)
      set(exports ${PROJECT_SOURCE_DIR}/cmake/exports.map)
      target_link_options(${library} PRIVATE LINKER:--version-script=${exports})
      set_property(TARGET ${library} APPEND PROPERTY LINK_DEPENDS ${exports})
    endif()
  endif()
endforeach()
