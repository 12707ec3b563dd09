"""Makes the small GGUF and safetensors files beside this script with their owners' packages.

    pip install gguf safetensors numpy
    python make_files.py
"""

import pathlib
import struct

import gguf
import numpy as np
import safetensors.numpy

HERE = pathlib.Path(__file__).parent


def metadata(writer):
    """One key of every type that the format has."""
    writer.add_uint8("test.u8", 200)
    writer.add_int8("test.i8", -100)
    writer.add_uint16("test.u16", 60000)
    writer.add_int16("test.i16", -30000)
    writer.add_uint32("test.u32", 4000000000)
    writer.add_int32("test.i32", -2000000000)
    writer.add_float32("test.f32", 1.5)
    writer.add_bool("test.bool", True)
    writer.add_string("test.string", "Größe \u2713")
    writer.add_uint64("test.u64", 2**63 + 1)
    writer.add_int64("test.i64", -(2**62))
    writer.add_float64("test.f64", 0.1)
    writer.add_array("test.ints", [1, -2, 3])
    writer.add_array("test.floats", [0.5, -0.25])
    writer.add_array("test.bools", [True, False, True])
    writer.add_array("test.strings", ["a", "", "\u2581b"])


def tensors():
    """Shapes slowest first, as numpy has them."""
    values = np.arange(64, dtype=np.float32).reshape(2, 32)
    return {
        "one": np.array([1, 2, 3], dtype=np.float32),
        "two": values.astype(np.float16),
        "three": np.arange(24, dtype=np.int8).reshape(2, 3, 4),
        "four": np.arange(16, dtype=np.float32).reshape(2, 1, 2, 4),
    }


def safetensors_tensors():
    return tensors() | {
        "scalar": np.array(2.5, dtype=np.float64),
        "empty": np.zeros((0, 3), dtype=np.int64),
        "flags": np.array([True, False]),
    }


def q8_0():
    return gguf.quants.quantize(
        np.linspace(-4, 4, 64, dtype=np.float32).reshape(2, 32), gguf.GGMLQuantizationType.Q8_0
    )


def write_gguf(name, alignment=None, **split):
    writer = gguf.GGUFWriter(HERE / name, "llama", **split)
    if alignment:
        writer.add_custom_alignment(alignment)
    metadata(writer)
    for tensor_name, data in tensors().items():
        writer.add_tensor(tensor_name, data)
    writer.add_tensor("quantized", q8_0(), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    write_gguf("python.gguf")
    write_gguf("python-aligned-64.gguf", alignment=64)
    write_gguf("python-split.gguf", split_max_tensors=2)

    # Version 2 has the same bytes but for its number.
    data = bytearray((HERE / "python.gguf").read_bytes())
    data[4:8] = struct.pack("<I", 2)
    (HERE / "python-v2.gguf").write_bytes(data)

    safetensors.numpy.save_file(
        safetensors_tensors(), HERE / "python.safetensors", metadata={"format": "np"}
    )


if __name__ == "__main__":
    main()
