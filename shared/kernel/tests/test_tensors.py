"""Packed arrays against the safetensors library, bit for bit, and what is refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicmd.kernel.tensors import pack, unpack

DTYPES = ["bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]


def bits(array):
    return array.dtype, array.shape, array.tobytes()


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_bits_survive(data):
    """Also NaN payloads and signed zeros: the bytes are drawn, not the numbers."""
    arrays = {}
    for name in data.draw(st.lists(st.text(max_size=5), unique=True, max_size=4)):
        dtype = np.dtype(data.draw(st.sampled_from([*DTYPES[1:], jnp.bfloat16])))
        shape = data.draw(st.lists(st.integers(0, 3), max_size=3))
        size = int(np.prod(shape)) * dtype.itemsize
        content = data.draw(st.binary(min_size=size, max_size=size))
        arrays[name] = np.frombuffer(content, dtype).reshape(shape)
    restored, _ = unpack(pack(arrays))
    assert {name: bits(a) for name, a in restored.items()} == {
        name: bits(a) for name, a in arrays.items()
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_library_reads_what_we_write_and_we_what_it_writes(dtype):
    arrays = {"x": np.arange(6).reshape(2, 3).astype(dtype), "s": np.array(1).astype(dtype)}
    theirs = safetensors.numpy.load(pack(arrays, {"note": "x"}))
    ours, metadata = unpack(safetensors.numpy.save(arrays, {"note": "x"}))
    for name, array in arrays.items():
        assert bits(theirs[name]) == bits(array) == bits(ours[name])
    assert metadata == {"note": "x"}


def test_transposed_and_big_endian_arrays_keep_their_values():
    transposed = np.arange(6.0).reshape(2, 3).T
    big_endian = np.arange(3, dtype=">f8")
    restored, _ = unpack(pack({"t": transposed, "b": big_endian}))
    np.testing.assert_array_equal(restored["t"], transposed)
    np.testing.assert_array_equal(restored["b"], big_endian)


def test_arrays_are_writable_and_the_bytes_do_not_depend_on_the_order():
    a, b = np.arange(3.0), np.arange(2, dtype=np.int8)
    restored, metadata = unpack(pack({"a": a, "b": b}))
    restored["a"][0] = 7.0
    assert metadata == {}
    assert pack({"a": a, "b": b}) == pack({"b": b, "a": a})


def test_unsupported_dtype_is_named():
    with pytest.raises(ValueError, match="'z' of dtype complex128"):
        pack({"z": np.ones(2, complex)})
    with pytest.raises(ValueError, match="__metadata__"):
        pack({"__metadata__": np.ones(2)})


def with_header(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


WHOLE = pack({"a": np.arange(4.0)})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        WHOLE[:5],
        WHOLE[:-1],
        WHOLE + b"\0",
        (2**63).to_bytes(8, "little") + b"{}",
        (10**9).to_bytes(8, "little") + b"{}",
        with_header(b"{" * 1000),
        with_header(b"[" * 100_000),
        with_header({"a": {"dtype": "F64", "shape": [4], "data_offsets": [0, 64]}}, b"\0" * 32),
        with_header({"a": {"dtype": "F64", "shape": [2**62], "data_offsets": [0, 8]}}, b"\0" * 8),
        with_header({"a": {"dtype": "F64", "shape": [-1], "data_offsets": [0, 8]}}, b"\0" * 8),
        with_header({"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}, b"\0" * 8),
        with_header({"a": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}, b"\x07"),
        with_header({"a": {"dtype": "object", "shape": [1], "data_offsets": [0, 8]}}, b"\0" * 8),
        with_header({"__metadata__": {"x": 3}}),
    ],
)
def test_damaged_or_hostile_bytes_are_refused(data):
    with pytest.raises(ValueError, match=r"safetensors|array 'a'"):
        unpack(data)


@pytest.mark.parametrize("position", range(0, len(WHOLE), 7))
def test_truncation_anywhere_is_noticed(position):
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        unpack(WHOLE[:position])
