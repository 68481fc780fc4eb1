"""Merging on the true product B A, in a basis that all sources share.

The update of source i is D_i = s_i B_i A_i. With B_1 ... B_k side by side = Q R and A_1 ... A_k one below another
= L P (both by QR), D_i = Q C_i P exactly, where C_i is as small as the ranks together. `product_linear` sums w_i C_i;
`product_ties` first turns all C_i into the principal axes that they have in common (as KnOTS does for one side,
arXiv 2410.19735), where entries can be compared, and trims, elects and averages there as TIES does. The result is cut
by SVD to the greatest rank among the sources: the best approximation at that rank (Eckart and Young). There are no
cross terms, and factors that differ but have the same product give the same merge.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from loramem.records import Recipe, SignMethod
from server.engine.fused import Flat
from server.engine.layout import SIDE_A, Layout, side_of
from server.engine.published import Part, as_tensor


def merge_products(recipe: Recipe, parts: Sequence[Part], layout: Layout, out: Flat) -> None:
    """Write A and B of every module to `out`; slow beside the elementwise methods: two QR and three SVD a module."""
    tensors = [part.layout.views(as_tensor(part.flat)) for part in parts]
    merged = layout.views(as_tensor(out))
    for name_a in (name for name in layout.names if side_of(name) == SIDE_A):
        name_b = name_a.replace(".lora_A.", ".lora_B.")
        present = [(part, own) for part, own in zip(parts, tensors, strict=True) if name_a in own]
        factors = [(own[name_b].float() * part.scaling, own[name_a].float()) for part, own in present]
        b, a = merge_product(recipe, factors, [part.weight for part, _ in present], merged[name_a].shape[0])
        merged[name_a].copy_(a)
        merged[name_b].copy_(b)


def merge_product(
    recipe: Recipe, factors: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float], rank: int
) -> tuple[Tensor, Tensor]:
    """(B, A) of shapes (out, rank) and (rank, in) from factors B_i (out, r_i) and A_i (r_i, in)."""
    left, cores, right = _shared_basis(factors)
    if recipe.method == "product_ties":
        left, cores, right = _principal_axes(left, cores, right)
        core = _ties(cores, weights, recipe.density, recipe.sign_method)
    else:
        core = sum((w * c for w, c in zip(weights, cores, strict=True)), torch.zeros_like(cores[0]))
    u, s, v = torch.linalg.svd(core, full_matrices=False)
    kept = min(rank, len(s))
    half = s[:kept].sqrt()
    b, a = left @ (u[:, :kept] * half), (half[:, None] * v[:kept]) @ right
    return _padded(b, (b.shape[0], rank)), _padded(a, (rank, a.shape[1]))


def _shared_basis(factors: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[Tensor], Tensor]:
    """Q (out, p), the cores C_i (p, q), and P (q, in), so that B_i A_i = Q C_i P."""
    q, r = torch.linalg.qr(torch.cat([b for b, _ in factors], dim=1))
    p, l = torch.linalg.qr(torch.cat([a for _, a in factors], dim=0).T)  # noqa: E741 L as in the module's docstring
    cores, start = [], 0
    for b, _ in factors:
        own = slice(start, start + b.shape[1])
        start += b.shape[1]
        cores.append(r[:, own] @ l[:, own].T)
    return q, cores, p.T


def _principal_axes(left: Tensor, cores: Sequence[Tensor], right: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """The same products in the left and right singular vectors of all cores together."""
    u = torch.linalg.svd(torch.cat(list(cores), dim=1), full_matrices=False)[0]
    v = torch.linalg.svd(torch.cat(list(cores), dim=0), full_matrices=False)[2]
    return left @ u, [u.T @ core @ v.T for core in cores], v @ right


def _ties(cores: Sequence[Tensor], weights: Sequence[float], density: float, sign_method: SignMethod) -> Tensor:
    """An axis may as well point the other way, so nothing here may depend on it: where TIES elects the positive after
    an even vote, the greater total decides, and where that is even too, nothing is left."""
    stack = torch.stack([_trimmed(core, density) for core in cores])
    signs, total = stack.sign(), stack.sum(dim=0)
    heads = total if sign_method == "total" else signs.sum(dim=0)
    agrees = signs * torch.where(heads == 0, total, heads).sign() > 0
    gains = torch.tensor(weights, dtype=stack.dtype).view(-1, 1, 1)
    return (stack * gains * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)


def _trimmed(core: Tensor, density: float) -> Tensor:
    if density >= 1:
        return core
    kept = torch.topk(core.abs().flatten(), k=int(density * core.numel())).indices
    trimmed = torch.zeros(core.numel())
    trimmed[kept] = core.flatten()[kept]
    return trimmed.view_as(core)


def _padded(tensor: Tensor, shape: tuple[int, int]) -> Tensor:
    rows, columns = shape[0] - tensor.shape[0], shape[1] - tensor.shape[1]
    return torch.nn.functional.pad(tensor, (0, columns, 0, rows))
