"""Named arrays as the bytes of a safetensors file, and back, bit for bit.

Reading is left to the safetensors library, which checks every offset; writing is done here
because the library's numpy writer stores the memory of a transposed array in the wrong
order and does not know bfloat16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import safetensors

_DTYPES = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def pack(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """The safetensors file with these arrays; the same input gives the same bytes.

    Args:
        arrays: any shapes; booleans, integers, float16, bfloat16, float32 or float64.
        metadata: text stored in the header.

    Raises:
        ValueError: for a dtype that the format lacks, naming the array.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    chunks, offset = [], 0
    # Wide types first, as the library does, so that every array is aligned.
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):
        array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        if array.dtype not in _CODES or name == "__metadata__":
            raise ValueError(f"array {name!r} of dtype {array.dtype} cannot be stored")
        data = array.tobytes()
        header[name] = {
            "dtype": _CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        chunks.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *chunks])


def unpack(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays, writable, and the metadata of a safetensors file.

    Raises:
        ValueError: if the bytes are not one complete, consistent safetensors file.
    """
    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"not a complete safetensors file: {error}") from error
    arrays = {}
    for name, entry in entries:
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(f"array {name!r} has the unsupported dtype {entry['dtype']}")
        content = np.frombuffer(entry["data"], np.uint8)
        if entry["dtype"] == "BOOL" and content.size and content.max() > 1:
            raise ValueError(f"array {name!r} has bytes that are no booleans")
        arrays[name] = content.view(dtype).reshape(entry["shape"])
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return arrays, header.get("__metadata__", {})
