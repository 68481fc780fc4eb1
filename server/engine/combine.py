"""Merging adapters: equal to PEFT's `add_weighted_adapter` (0.21), and two methods of our own on the product.

| method | what becomes of A and B of each module |
|---|---|
| `linear` | sum of the sources, each scaled by sqrt(|w s|) on both sides, the sign on A; s is alpha / rank |
| `ties` | trimmed to the largest entries, a sign elected per entry, the mean of the scaled values that have it |
| `dare_linear`, `dare_ties` | the same after a random trim that scales what is left by 1 / density |
| `cat` | laid side by side, w s on A: the exact weighted sum of the updates, at the sum of the ranks |
| `product_linear`, `product_ties` | see `product.py` |

All but the last two work on A and on B apart, so their product holds cross terms B_i A_j. Among greater ranks a source
counts as if its A had rows of zeros below and its B columns of zeros on the right, which leaves B A as it is; it is
trimmed before that, on its own entries, and keeps its own scaling. The merged adapter has alpha = rank (scaling 1).
Where we differ from PEFT on purpose: it refuses ranks that differ in all but `cat`, rsLoRA's scaling is not applied a
second time, and DARE's draws are by seed and adapter, not by the state of a generator; one adapter at weight 1 is
served as published, its scaling on B, where PEFT's square roots on both sides would be rounded to bfloat16 (the product
is the same).
"""

import math
from collections.abc import Sequence

import numpy as np

from loramem.records import TRIMS_AT_RANDOM, TRIMS_BY_MAGNITUDE, Recipe, merged_rank
from server.engine.fused import Elementwise, Flat, Gains, merge_flat
from server.engine.layout import SIDE_A, Layout, side_of, union
from server.engine.product import merge_products
from server.engine.published import WHOLE, Part, Trim, as_tensor


def trim_of(recipe: Recipe) -> Trim:
    """What is left out of each source before it is merged. `product_ties` trims later, on the product."""
    if recipe.density >= 1:
        return WHOLE
    if recipe.method in TRIMS_AT_RANDOM:
        return Trim("random", recipe.density, recipe.seed)
    if recipe.method in TRIMS_BY_MAGNITUDE and recipe.method != "product_ties":
        return Trim("magnitude", recipe.density)
    return WHOLE


def layout_of_merge(recipe: Recipe, layouts: Sequence[Layout], ranks: Sequence[int]) -> tuple[Layout, int]:
    """Layout and rank of the merge."""
    rank = merged_rank(recipe.method, ranks)
    return union([layout.at_rank(rank) for layout in layouts]), rank


def merge_into(recipe: Recipe, parts: Sequence[Part], layout: Layout, out: Flat) -> None:
    """Write the merge of `parts`, in the recipe's order, to `out` (size,), which lies as `layout` says."""
    if recipe.method == "cat":
        _concatenate(parts, layout, out)
    elif not is_elementwise(recipe):
        merge_products(recipe, parts, layout, out)
    else:
        flats = [part.flat if part.layout == layout else _laid_out_as(layout, part) for part in parts]
        merge_flat(
            elementwise_of(recipe), flats, gains_of([(part.weight, part.scaling) for part in parts]), layout.tiles, out
        )


def is_elementwise(recipe: Recipe) -> bool:
    """Whether each entry of the merge depends on the same entry of each source alone."""
    return recipe.method != "cat" and not recipe.method.startswith("product_")


def elementwise_of(recipe: Recipe) -> Elementwise:
    if recipe.method not in ("ties", "dare_ties"):
        return "sum"
    return "ties_total" if recipe.sign_method == "total" else "ties_frequency"


def gains_of(sources: Sequence[tuple[float, float]]) -> Gains:
    """(sources, 2): what A and B of each are multiplied by, from its weight and its alpha / rank."""
    scales = [weight * scaling for weight, scaling in sources]
    if len(sources) == 1 and sources[0][0] == 1.0:  # no merge: A as published, and a power of two rounds nothing of B
        return np.array([(1.0, scales[0])], dtype=np.float32)
    return np.array([(math.copysign(math.sqrt(abs(s)), s), math.sqrt(abs(s))) for s in scales], dtype=np.float32)


def _laid_out_as(layout: Layout, part: Part) -> Flat:
    """Zeros where the source has no such tensor, or a smaller rank: neither an election nor a mean counts them."""
    spread = np.zeros(layout.size, dtype=part.flat.dtype)
    part.layout.copy_into(layout, as_tensor(part.flat), as_tensor(spread))
    return spread


def _concatenate(parts: Sequence[Part], layout: Layout, out: Flat) -> None:
    tensors = [part.layout.views(as_tensor(part.flat)) for part in parts]
    as_tensor(out).zero_()
    for name, merged in layout.views(as_tensor(out)).items():
        side, start = side_of(name), 0
        for part, own in zip(parts, tensors, strict=True):
            if name not in own:
                continue  # takes no place, as in PEFT: the zeros come last
            place = merged.narrow(0 if side == SIDE_A else 1, start, part.rank)
            start += part.rank
            scaled = own[name].float() * (part.weight * part.scaling) if side == SIDE_A else own[name]
            place.copy_(scaled)
