"""Checks files that nibble wrote with the packages that own the formats.

    pip install gguf safetensors numpy
    NIBBLE_WRITE_FILES=FOLDER build/release/tests/gguf_test
    NIBBLE_WRITE_FILES=FOLDER build/release/tests/safetensors_test
    python check_files.py FOLDER
"""

import json
import pathlib
import sys

import gguf
import numpy as np
import safetensors.numpy

import make_files


def check_same(found, expected):
    assert found.keys() == expected.keys(), (found.keys(), expected.keys())
    for name, data in expected.items():
        assert found[name].dtype == data.dtype, name
        np.testing.assert_array_equal(found[name], data, err_msg=name)


def check_gguf(paths, alignment=32):
    expected = make_files.tensors() | {"quantized": make_files.q8_0()}
    found = {}
    for i, path in enumerate(paths):
        reader = gguf.GGUFReader(path)
        assert reader.alignment == alignment, path
        if i == 0:
            assert reader.fields["test.string"].contents() == "Größe \u2713"
            assert reader.fields["test.strings"].contents() == ["a", "", "\u2581b"]
            assert reader.fields["test.bools"].contents() == [True, False, True]
            assert reader.fields["test.u64"].contents() == 2**63 + 1
        if len(paths) > 1:
            split = [reader.fields[f"split.{key}"] for key in ("no", "count", "tensors.count")]
            assert [field.contents() for field in split] == [i, len(paths), len(expected)], path
            kinds = [str(field.types[0].name) for field in split]
            assert kinds == ["UINT16", "UINT16", "INT32"], kinds
        for tensor in reader.tensors:
            assert tensor.data_offset % alignment == 0, tensor.name
            found[tensor.name] = tensor.data
    check_same(found, expected)


def check_safetensors(folder):
    expected = make_files.safetensors_tensors()
    check_same(safetensors.numpy.load_file(folder / "nibble.safetensors"), expected)
    index = json.loads((folder / "nibble-split.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in expected.values())
    found = {}
    for name, file in index["weight_map"].items():
        with safetensors.safe_open(folder / file, framework="numpy") as shard:
            assert shard.metadata() == {"format": "np"}
            found[name] = shard.get_tensor(name)
    check_same(found, expected)


def main():
    folder = pathlib.Path(sys.argv[1])
    check_gguf([folder / "nibble.gguf"])
    check_gguf([folder / "nibble-aligned-64.gguf"], alignment=64)
    shards = sorted(folder.glob("nibble-split-*.gguf"))
    assert len(shards) == 5
    check_gguf(shards)
    check_safetensors(folder)
    print("all files read as written")


if __name__ == "__main__":
    main()
