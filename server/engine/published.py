"""A published adapter as the engine's worker holds it: mapped, checked once, readable after its deletion."""

import hashlib
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from loramem.errors import StoredDataDamaged
from loramem.store import CONFIG, WEIGHTS, AdapterStore
from loramem.trim import MASK, STORED_DENSITY, keep_mask
from loramem.weights import read_header
from server.engine.fused import Flat
from server.engine.layout import Layout, one_of_each

TYPES: dict[str, type[np.generic]] = {"F32": np.float32, "BF16": np.uint16}
"""What a file's entries are kept as; bfloat16, which NumPy does not know, as its bits."""


@dataclass(frozen=True)
class Trim:
    """What a merge leaves out of a source before it looks at it: small entries (TIES) or random ones (DARE)."""

    kind: Literal["none", "magnitude", "random"] = "none"
    density: float = 1.0
    seed: int = 0


WHOLE = Trim()


@dataclass(frozen=True)
class PublishedAdapter:
    """The mapping keeps the file's bytes until it is dropped, even when the folder is deleted meanwhile."""

    adapter_id: str
    sha256: str
    layout: Layout
    rank: int
    alpha: float
    values: Flat = field(repr=False)
    mask: NDArray[np.uint8] | None = field(repr=False)

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    @property
    def mapped_bytes(self) -> int:
        return self.values.nbytes

    def flat(self, trim: Trim) -> Flat:
        """A copy of the entries (size,): as published, or float32 after a random trim, which scales by 1 / density."""
        values: Flat = self.values
        if trim.kind == "none" or trim.density >= 1:
            copied = values.copy()
        elif trim.kind == "magnitude":
            copied = values * self._kept(trim.density)
        else:
            copied = self._thinned(values, trim)
        return copied

    def _kept(self, density: float) -> NDArray[np.bool_]:
        if self.mask is None or density != STORED_DENSITY:
            tensors = self.layout.views(as_tensor(self.values)).values()
            return np.concatenate([keep_mask(tensor, density) for tensor in tensors])
        return np.unpackbits(self.mask, count=self.layout.size).view(np.bool_)

    def _thinned(self, values: Flat, trim: Trim) -> NDArray[np.float32]:
        thinned = as_tensor(values).to(torch.float32, copy=True)  # the mapping cannot be written
        for name, tensor in self.layout.views(thinned).items():
            kept = torch.from_numpy(random_mask(self.sha256, name, tuple(tensor.shape), trim))
            tensor.div_(trim.density).masked_fill_(~kept, 0)  # last, for a density that is 0 as a float32: 0 / 0
        return thinned.numpy()


@dataclass(frozen=True)
class Part:
    """One source of a merge: its entries (size,), trimmed as the method wants them, and how they lie."""

    flat: Flat
    layout: Layout
    rank: int
    scaling: float
    weight: float


def random_mask(sha256: str, name: str, shape: tuple[int, ...], trim: Trim) -> NDArray[np.bool_]:
    """Which entries DARE keeps: a draw of its own for each tensor of each adapter, by the seed, whatever it is merged
    with, so that a trimmed source serves many merges."""
    key = hashlib.sha256(f"{trim.seed}/{sha256}/{name}".encode()).digest()
    draws = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16])))
    return draws.random(shape, dtype=np.float32) < trim.density


def as_tensor(flat: NDArray[Any]) -> Tensor:
    """The same memory as a tensor, bfloat16 for bits."""
    kind = torch.bfloat16 if flat.dtype == np.uint16 else torch.float32
    with warnings.catch_warnings():  # of a mapped file, which nobody writes to
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(flat.data, dtype=kind)


def open_published(store: AdapterStore, adapter_id: str, sha256: str) -> PublishedAdapter:
    """Map and check a published adapter; `sha256` is of its weights file.

    Raises `StoredDataDamaged` when it is missing, altered, or of tensors that no merge takes.
    """
    folder = store.path(adapter_id)
    try:
        digests = store.verify(adapter_id).sha256
        config = json.loads((folder / CONFIG).read_text())
        layout, kind, start = _laid_out(folder / WEIGHTS)
        values: Flat = _map(folder / WEIGHTS, start).view(kind)
        mask = _mapped_mask(folder) if MASK in digests else None
    except OSError as error:
        raise StoredDataDamaged(f"adapter {adapter_id} cannot be read: {error.strerror}") from error
    if digests.get(WEIGHTS) != sha256:
        raise StoredDataDamaged(f"adapter {adapter_id} does not match its sha256")
    if layout.at_rank(int(config["r"])) != layout:
        raise StoredDataDamaged(f"adapter {adapter_id} has tensors of another rank than its configuration")
    return PublishedAdapter(adapter_id, sha256, layout, int(config["r"]), float(config["lora_alpha"]), values, mask)


def _laid_out(path: Path) -> tuple[Layout, type[np.generic], int]:
    """Layout, type of the entries and offset of the first, of a safetensors file."""
    header, start = read_header(path)
    kinds = {str(tensor["dtype"]) for tensor in header.values()}
    if len(kinds) != 1 or not kinds <= TYPES.keys():
        raise StoredDataDamaged(
            f"adapter {path.parent.name}: tensors are {sorted(kinds)}, allowed: all F32 or all BF16"
        )
    ordered = sorted(header.items(), key=lambda item: int(item[1]["data_offsets"][0]))
    layout = Layout(tuple(name for name, _ in ordered), tuple(tuple(tensor["shape"]) for _, tensor in ordered))
    return one_of_each(layout), TYPES[kinds.pop()], start


def _mapped_mask(folder: Path) -> NDArray[np.uint8] | None:
    """None where the mask is for another density than ours."""
    with safe_open(folder / MASK, framework="numpy") as file:
        density = (file.metadata() or {}).get("density")
    _, start = read_header(folder / MASK)
    return _map(folder / MASK, start) if density == str(STORED_DENSITY) else None


def _map(path: Path, start: int) -> NDArray[np.uint8]:
    """The bytes of a file from `start` on. Unlike `mmap`, this keeps no file descriptor open."""
    whole = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    mapped: NDArray[np.uint8] = whole.numpy()[start:]
    mapped.flags.writeable = False
    return mapped
