"""What an adapter's tensors must be before anybody serves them. Needs no torch, and reads bfloat16 all the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from loramem.errors import AdapterRejected

EXPONENT_BITS: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
"""Bits that are all set in infinities and NaNs alone (IEEE 754), with the integer to look at them through."""


def check_weights(path: Path) -> None:
    """Raises `AdapterRejected` unless `path` is a safetensors file whose tensors are floats, all of them finite."""
    header, start = read_header(path)
    if not header:
        raise AdapterRejected(f"{path.name} holds no tensor")
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=start)
    for name, tensor in header.items():
        if tensor["dtype"] not in EXPONENT_BITS:
            raise AdapterRejected(f"{path.name}: {name} is {tensor['dtype']}, allowed are {', '.join(EXPONENT_BITS)}")
        integer, mask = EXPONENT_BITS[tensor["dtype"]]
        begin, end = tensor["data_offsets"]
        if np.any((data[begin:end].view(integer) & integer(mask)) == integer(mask)):
            raise AdapterRejected(f"{path.name}: {name} holds numbers that are not finite")


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Tensors by name as the format describes them, and where their data starts; lengths and offsets are checked."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass  # reads the header and checks that the tensors fill the file without gap or overlap
    except SafetensorError as error:
        raise AdapterRejected(f"{path.name} is not a safetensors file: {error}") from error
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length
