# The interface target `phiquant_xsimd`: headers of xsimd 14, installed or out of pythran's wheel.
# Needs Python_EXECUTABLE where xsimd 14 is not installed.

add_library(phiquant_xsimd INTERFACE)

find_package(xsimd 14 CONFIG QUIET)
if(xsimd_FOUND)
  get_target_property(_phiquant_xsimd_include xsimd INTERFACE_INCLUDE_DIRECTORIES)
  message(STATUS "xsimd ${xsimd_VERSION}: ${xsimd_DIR}")
else()
  # pythran carries xsimd's headers; find_spec, as importing it is slow and not needed.
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c "import importlib.util as u, pathlib as p
print(p.Path(u.find_spec('pythran').origin).parent.as_posix(), end='')"
    OUTPUT_VARIABLE _phiquant_xsimd_include
    RESULT_VARIABLE _phiquant_pythran_missing
    ERROR_QUIET)
  if(_phiquant_pythran_missing
     OR NOT EXISTS "${_phiquant_xsimd_include}/xsimd/xsimd.hpp")
    message(FATAL_ERROR
      "xsimd 14 was not found. Either install it (so that find_package(xsimd 14) succeeds), or "
      "`pip install 'pythran>=0.19,<0.20'`, whose wheel has its headers, for ${Python_EXECUTABLE}.")
  endif()
  message(STATUS "xsimd: ${_phiquant_xsimd_include} (of pythran)")
endif()

target_include_directories(phiquant_xsimd SYSTEM INTERFACE ${_phiquant_xsimd_include})
