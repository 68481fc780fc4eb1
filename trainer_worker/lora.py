"""LoRA adapters beside the frozen linear layers of a model, one or several at once.

PEFT trains one adapter at a time. Here the batch's lanes are shared out, as many to each adapter, in order; all of them
go through the base in one product. Names, shapes and scaling are PEFT's, so that what is trained is a plain PEFT
adapter.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from loramem.errors import TrainingFailed
from loramem.records import Placement
from trainer_worker.adapter import depth_of

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

PEFT_ROOT = "base_model.model."
Part = Literal["attention", "ffn"]
PARTS: dict[Part, tuple[str, ...]] = {
    "attention": ("attn", "attention"),
    "ffn": ("mlp", "feed_forward", "feedforward", "ffn", "moe", "expert", "fc1", "fc2"),
}
"""What occurs in the names of modules within a layer, by which the field's models tell its parts."""


class Pair(NamedTuple):
    """Both sides of one adapter at one linear layer: `a` (rank, in), `b` (out, rank)."""

    a: Tensor
    b: Tensor


class Lora(nn.Module):
    """A frozen linear layer with `count` adapters: `a` (count, rank, in), `b` (count, out, rank).

    `less`, of any rank, is taken off each of them and never trained.
    """

    def __init__(self, base: nn.Linear, count: int, rank: int, scaling: float, less: Pair | None = None) -> None:
        super().__init__()
        self.base, self.scaling, self.less = base, scaling, less
        self.a = nn.Parameter(base.weight.new_zeros(count, rank, base.in_features))
        self.b = nn.Parameter(base.weight.new_zeros(count, base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """(lanes, tokens, in) to (lanes, tokens, out)."""
        lanes = x.reshape(len(self.a), -1, x.shape[-1])
        product: Any = _Product.apply
        out: Tensor = product(lanes, self.base.weight, self.base.bias, *self._whole(), self.scaling)
        return out.view(*x.shape[:-1], -1)

    def _whole(self) -> tuple[Tensor, Tensor]:
        """In one product with what is taken off: where the two are equal they cancel before anything is rounded."""
        if self.less is None:
            return self.a, self.b
        a, b = (side.expand(len(self.a), -1, -1) for side in self.less)
        return torch.cat([self.a, a], dim=1), torch.cat([self.b, -b], dim=2)


class _Product(torch.autograd.Function):
    """x W' + scaling x A' B', adding in place; neither W nor the bias get a gradient, A only where it is trained."""

    @staticmethod
    def forward(
        ctx: "FunctionCtx", x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        inner = torch.bmm(x, a.transpose(1, 2))
        y = nn.functional.linear(x, w, bias)
        y.baddbmm_(inner, b.transpose(1, 2), alpha=scaling)
        ctx.save_for_backward(x, w, a, b, inner)
        ctx.scaling = scaling  # type: ignore[attr-defined]
        return y

    @staticmethod
    def backward(ctx: "FunctionCtx", *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, w, a, b, inner = ctx.saved_tensors  # type: ignore[attr-defined]
        to_x, _, _, to_a, *_ = ctx.needs_input_grad  # type: ignore[attr-defined]
        dy = gradients[0].contiguous()
        d_b = torch.bmm(dy.transpose(1, 2), inner).mul_(ctx.scaling)  # type: ignore[attr-defined]
        if not (to_x or to_a):
            return None, None, None, None, d_b, None
        d_inner = torch.bmm(dy, b).mul_(ctx.scaling)  # type: ignore[attr-defined]
        d_a = torch.bmm(d_inner.transpose(1, 2), x) if to_a else None
        d_x = torch.matmul(dy, w).baddbmm_(d_inner, a) if to_x else None
        return d_x, None, None, d_a, d_b, None


Wanted = Callable[[str], bool]
"""Whether the linear layer of this name gets an adapter."""


@contextmanager
def attached(
    model: Any, wanted: Wanted, *, count: int, rank: int, scaling: float, less: Mapping[str, Pair] | None = None
) -> Iterator[dict[str, nn.Parameter]]:
    """For as long as the block lasts, linear layers are `Lora`; gives their parameters under PEFT's names. `less`, by
    the layer's name, is what is taken off each adapter."""
    chosen = {name: layer for name, layer in linear_layers(model) if wanted(name)}
    loras = {name: Lora(layer, count, rank, scaling, (less or {}).get(name)) for name, layer in chosen.items()}
    named: dict[str, nn.Parameter] = {}
    for name, lora in loras.items():
        named |= {peft_name(name, "A"): lora.a, peft_name(name, "B"): lora.b}
    try:
        for name, lora in loras.items():
            _put(model, name, lora)
        yield named
    finally:
        for name, layer in chosen.items():
            _put(model, name, layer)


def linear_layers(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """All but the one that gives the logits, as PEFT's `all-linear` has it."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield name, module


def peft_name(layer: str, side: Literal["A", "B"]) -> str:
    return f"{PEFT_ROOT}{layer}.lora_{side}.weight"


def placed(model: Any, placement: Placement, lower: int) -> list[str]:
    """Names of the linear layers that get an adapter; of the base's `lower` layers `late` takes none and `early` all.

    Raises `TrainingFailed` when the base has no such layer.
    """
    names = [name for name, _ in linear_layers(model) if depth_of(name) >= 0 and _takes(placement, name, lower)]
    if not names:
        raise TrainingFailed(
            f"placement={placement}: no linear layer of the base is there, with {lower} layers as its lower part; "
            "placement=all takes every linear layer"
        )
    return names


def _takes(placement: Placement, name: str, lower: int) -> bool:
    if placement in ("late", "early"):
        return (depth_of(name) >= lower) == (placement == "late")
    return placement in ("all", _part(name))


def _part(name: str) -> Part | None:
    """Whether a linear layer belongs to attention or to the feed-forward part; None for neither."""
    within = name.split(f".{depth_of(name)}.", 1)[-1].lower()
    return next((part for part, marks in PARTS.items() if any(mark in within for mark in marks)), None)


def start(parameters: dict[str, nn.Parameter], seed: int) -> None:
    """A from seed and name alone (Kaiming uniform, as PEFT draws it), the same for all adapters of a base; B zero."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            if ".lora_B." in name:
                parameter.zero_()
            else:
                parameter.copy_(_first_a(name, tuple(parameter.shape[1:]), seed).expand_as(parameter))


def _first_a(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_of(name, seed))
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def seed_of(name: str, seed: int) -> int:
    """A seed of its own for each name, so that what is drawn does not depend on which others are drawn."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _put(model: Any, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
