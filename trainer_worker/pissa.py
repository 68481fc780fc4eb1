"""PiSSA: an adapter that starts from the principal singular parts of the frozen weight (arXiv 2404.02948, section 3).

The paper takes those parts off the base, so that base and start are W again. Here the base is everybody's and stays as
it is: the start is taken off the adapter instead,

    W + s (B A - B0 A0)  =  W + s [B, -B0] [A; A0]

which is a plain LoRA adapter of twice the rank. It is published as the singular parts of that difference, not as the
two halves: these are as large as W itself and cancel only as long as nobody rounds or trims them, as TIES does.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer_worker.lora import Pair, peft_name

OVERSAMPLED = 10
"""Parts that are found beside those wanted; the last ones found are the least exact."""
ITERATIONS = 4
"""Of the subspace method: what is left of the weights is then next to the least possible."""
STORED = torch.bfloat16


def principal(weight: Tensor, rank: int, *, scaling: float, seed: int) -> Pair:
    """W's (out, in) `rank` largest singular parts as `scaling` B A, the root of each singular value on either side.

    Randomised (`torch.svd_lowrank`), by `seed` alone. In W's type, rounded to what is stored. Where W has fewer parts
    the rest of A and B is zero.
    """
    with torch.no_grad(), torch.random.fork_rng([weight.device] if weight.is_cuda else []):
        torch.manual_seed(seed)
        found = min(rank + OVERSAMPLED, *weight.shape)
        u, values, v = torch.svd_lowrank(weight.float(), q=found, niter=ITERATIONS)
        roots = (values / scaling).sqrt()
        sides = (u * roots)[:, :rank], (v * roots)[:, :rank]
        b, a = (torch.nn.functional.pad(side, (0, rank - side.shape[1])).to(STORED) for side in sides)
    return Pair(a.T.to(weight.dtype).contiguous(), b.to(weight.dtype).contiguous())


def start(parameters: Mapping[str, torch.nn.Parameter], parts: Mapping[str, Pair]) -> None:
    """Every adapter begins at the principal parts, given by layer."""
    with torch.no_grad():
        for layer, pair in parts.items():
            parameters[peft_name(layer, "A")].copy_(pair.a)
            parameters[peft_name(layer, "B")].copy_(pair.b)


def published(weights: Mapping[str, Tensor], parts: Mapping[str, Pair]) -> dict[str, Tensor]:
    """Trained `weights` (by PEFT's names, on the CPU) less what they started from, as one adapter of twice the rank."""
    whole = dict(weights)
    for layer, pair in parts.items():
        name_a, name_b = peft_name(layer, "A"), peft_name(layer, "B")
        a = torch.cat([weights[name_a], pair.a.cpu().float()], dim=0)
        b = torch.cat([weights[name_b], -pair.b.cpu().float()], dim=1)
        whole[name_a], whole[name_b] = _balanced(a, b)
    return whole


def _balanced(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) with the same product, the root of each of its singular values on either side."""
    left, in_b = torch.linalg.qr(b.double())
    right, in_a = torch.linalg.qr(a.double().T)
    u, values, v = torch.linalg.svd(in_b @ in_a.T, full_matrices=False)
    roots = values.sqrt()
    padded = a.shape[0] - len(roots)  # a layer narrower than the rank has fewer parts
    new_a, new_b = (right @ v.T * roots).T, left @ u * roots
    return (
        torch.nn.functional.pad(new_a, (0, 0, 0, padded)).float().contiguous(),
        torch.nn.functional.pad(new_b, (0, padded)).float().contiguous(),
    )
