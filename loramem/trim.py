"""Which entries of an adapter TIES keeps. That depends on the adapter alone, so it is found once, when the adapter is
published, and stored beside its weights; merging then never sorts.

ties_mask.safetensors    `keep`: a bit for each entry of the weights file, in the file's order (`numpy.packbits`);
                         metadata `density`
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

MASK = "ties_mask.safetensors"
STORED_DENSITY = 0.5
"""The density of the paper and of a query's default; others are found when they are first asked for."""


def keep_mask(tensor: "Tensor", density: float) -> NDArray[np.bool_]:
    """(entries,): true for the `int(density * entries)` of largest magnitude, as PEFT's `magnitude_based_pruning` has
    it, to the choice among equals."""
    import torch

    flat = tensor.reshape(-1)
    keep = torch.zeros(flat.numel(), dtype=torch.bool)
    keep[torch.topk(flat.abs(), k=int(density * flat.numel()), largest=True).indices] = True
    return keep.numpy()


def write_mask(folder: Path, weights: Path) -> None:
    """Store the masks of all tensors of a safetensors file, one after another as they lie in it."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(weights, framework="pt") as file:
        kept = [keep_mask(file.get_tensor(name), STORED_DENSITY) for name in file.offset_keys()]
    save_file({"keep": np.packbits(np.concatenate(kept))}, folder / MASK, metadata={"density": str(STORED_DENSITY)})
