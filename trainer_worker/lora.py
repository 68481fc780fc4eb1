"""LoRA adapters beside the frozen linear layers of a model, one or several at once.

PEFT trains one adapter at a time. Here the batch's lanes are shared out, as many to each adapter, in order; all of them
go through the base in one product. Names, shapes and scaling are PEFT's, so that what is trained is a plain PEFT
adapter.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

PEFT_ROOT = "base_model.model."


class Lora(nn.Module):
    """A frozen linear layer with `count` adapters: `a` (count, rank, in), `b` (count, out, rank)."""

    def __init__(self, base: nn.Linear, count: int, rank: int, scaling: float) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        self.a = nn.Parameter(base.weight.new_zeros(count, rank, base.in_features))
        self.b = nn.Parameter(base.weight.new_zeros(count, base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """(lanes, tokens, in) to (lanes, tokens, out)."""
        lanes = x.reshape(len(self.a), -1, x.shape[-1])
        product: Any = _Product.apply
        out: Tensor = product(lanes, self.base.weight, self.base.bias, self.a, self.b, self.scaling)
        return out.view(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """x W' + scaling x A' B', adding in place; neither W nor the bias get a gradient."""

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
        dy = gradients[0].contiguous()
        d_inner = torch.bmm(dy, b).mul_(ctx.scaling)  # type: ignore[attr-defined]
        d_b = torch.bmm(dy.transpose(1, 2), inner).mul_(ctx.scaling)  # type: ignore[attr-defined]
        d_a = torch.bmm(d_inner.transpose(1, 2), x)
        if not ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
            return None, None, None, d_a, d_b, None
        return torch.matmul(dy, w).baddbmm_(d_inner, a), None, None, d_a, d_b, None


Wanted = Callable[[str], bool]
"""Whether the linear layer of this name gets an adapter."""


@contextmanager
def attached(model: Any, wanted: Wanted, *, count: int, rank: int, scaling: float) -> Iterator[dict[str, nn.Parameter]]:
    """For as long as the block lasts, linear layers are `Lora`; gives their parameters under PEFT's names."""
    chosen = {name: layer for name, layer in linear_layers(model) if wanted(name)}
    loras = {name: Lora(layer, count, rank, scaling) for name, layer in chosen.items()}
    try:
        for name, lora in loras.items():
            _put(model, name, lora)
        yield {
            f"{PEFT_ROOT}{name}.lora_{side}.weight": parameter
            for name, lora in loras.items()
            for side, parameter in (("A", lora.a), ("B", lora.b))
        }
    finally:
        for name, layer in chosen.items():
            _put(model, name, layer)


def linear_layers(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """All but the one that gives the logits, as PEFT's `all-linear` has it."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield name, module


def start(parameters: dict[str, nn.Parameter], seed: int) -> None:
    """A from seed and name alone (Kaiming uniform, as PEFT draws it), the same for all adapters of a base; B zero."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            if ".lora_B." in name:
                parameter.zero_()
            else:
                parameter.copy_(_first_a(name, tuple(parameter.shape[1:]), seed).expand_as(parameter))


def _first_a(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _put(model: Any, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
