"""llama.cpp as the tests use it: quiet, with weights kept as they are in the file."""
import ctypes

import llama_cpp

# Types that llama.cpp and nibble both write: name, and the number llama.cpp gives it; None: nibble
# alone has the name, for every matrix.
TYPES = [("F32", 0), ("F16", 1), ("BF16", 32), ("Q8_0", 7), ("Q6_K", 18), ("Q5_K_M", 17),
         ("Q5_K_S", 16), ("q5_K", None), ("Q5_1", 9), ("Q5_0", 8), ("Q4_K_M", 15), ("Q4_K_S", 14),
         ("q4_K", None), ("Q4_1", 3), ("Q4_0", 2), ("IQ4_NL", 25), ("IQ4_XS", 30), ("mxfp4", None),
         ("Q3_K_L", 13), ("Q3_K_M", 12), ("Q3_K_S", 11), ("q3_K", None), ("Q2_K", 10),
         ("TQ2_0", 37), ("TQ1_0", 36)]

# Of the types that nibble only reads the one that llama.cpp writes without an importance matrix.
READ_TYPES = [("IQ3_S", 26)]


def quantize(source, target, file_type):
    """llama.cpp's own quantizer. False where it refuses."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = 1
    return llama_cpp.llama_model_quantize(source.encode(), target.encode(),
                                          ctypes.byref(params)) == 0


def without_repacking():
    """Model parameters that keep weights as they are in the file: llama.cpp's layouts for AMX crash
    on some processors, with its own Q8_0 files too."""
    params = default_params()
    params.use_extra_bufts = False
    return params


default_params = llama_cpp.llama_model_default_params
llama_cpp.llama_cpp.llama_model_default_params = without_repacking  # as Llama sees it
silence = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
