"""Merges against PEFT itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from loramem.records import MergeMethod, Recipe, SignMethod, Source, merged_rank
from server.engine.combine import SourceAdapter, combine, elect_and_average, trim

SHA = "0" * 64


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(12, 20, bias=False)
        self.down = nn.Linear(20, 12, bias=False)


def peft_merge(
    ranks: list[int], alphas: list[int], weights: list[float], method: str, density: float, sign: str, seed: int
) -> tuple[list[SourceAdapter], dict[str, torch.Tensor], int]:
    """PEFT adapters with random factors, and what PEFT makes of them."""
    torch.manual_seed(seed)
    names = [f"a{i}" for i in range(len(ranks))]
    targets = ["up", "down"]
    config = [LoraConfig(r=r, lora_alpha=a, target_modules=targets) for r, a in zip(ranks, alphas, strict=True)]
    model = get_peft_model(TwoLayers(), config[0], adapter_name=names[0])
    for name, one in zip(names[1:], config[1:], strict=True):
        model.add_adapter(name, one)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            nn.init.normal_(parameter)
    sources = [
        SourceAdapter(_tensors(model, name), rank, alpha)
        for name, rank, alpha in zip(names, ranks, alphas, strict=True)
    ]
    model.base_model.add_weighted_adapter(names, weights, "m", method, density=density, majority_sign_method=sign)
    return sources, _tensors(model, "m"), model.peft_config["m"].r


def _tensors(model: nn.Module, adapter: str) -> dict[str, torch.Tensor]:
    ending = f".{adapter}.weight"
    return {
        key.replace(ending, ".weight"): value.detach().clone()
        for key, value in model.named_parameters()
        if key.endswith(ending)
    }


def ours(
    sources: list[SourceAdapter], weights: list[float], method: MergeMethod, density: float, sign: SignMethod
) -> tuple[dict[str, torch.Tensor], int]:
    named = [Source(adapter_id=f"a{i}", sha256=SHA, weight=weight) for i, weight in enumerate(weights)]
    recipe = Recipe.of(method, named, density, sign)
    if method == "ties":
        sources = [SourceAdapter({n: trim(t, density) for n, t in s.tensors.items()}, s.rank, s.alpha) for s in sources]
    merged = combine(recipe, sources)
    return merged.tensors, merged.rank


@st.composite
def merges(draw: st.DrawFn) -> tuple[list[int], list[int], list[float], str, float, str, int]:
    method = draw(st.sampled_from(["ties", "linear", "cat"]))
    count = draw(st.integers(2, 5))
    rank = draw(st.integers(1, 9))
    ranks = [draw(st.integers(1, 9)) if method == "cat" else rank for _ in range(count)]
    alphas = [draw(st.integers(1, 32)) for _ in range(count)]
    weights = [draw(st.floats(-2, 3).map(lambda w: round(w, 3))) for _ in range(count)]
    density = draw(st.sampled_from([0.1, 0.2, 0.5, 0.75, 0.99]))
    return (
        ranks,
        alphas,
        weights,
        method,
        density,
        draw(st.sampled_from(["total", "frequency"])),
        draw(st.integers(0, 99)),
    )


@settings(max_examples=60, deadline=None)
@given(merges())
def test_equals_peft_within_1e_6(case: tuple[list[int], list[int], list[float], str, float, str, int]) -> None:
    ranks, alphas, weights, method, density, sign, seed = case
    sources, expected, rank = peft_merge(ranks, alphas, weights, method, density, sign, seed)
    merged, merged_to = ours(sources, weights, method, density, sign)  # type: ignore[arg-type]
    assert merged_to == rank == merged_rank(method, ranks)  # type: ignore[arg-type]
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        scale = max(1.0, float(expected[name].abs().max()))
        assert float((tensor - expected[name]).abs().max()) / scale <= 1e-6, name


def test_one_adapter_with_weight_one_keeps_its_update() -> None:
    sources, _, _ = peft_merge([4, 4], [8, 8], [1, 1], "linear", 0.5, "total", 1)
    merged, _ = ours(sources[:1], [1.0], "ties", 1.0, "total")
    a, b = "base_model.model.up.lora_A.weight", "base_model.model.up.lora_B.weight"
    assert torch.allclose(merged[b] @ merged[a], 2 * sources[0].tensors[b] @ sources[0].tensors[a], atol=1e-5)


def test_trim_keeps_exactly_the_largest() -> None:
    trimmed = trim(torch.tensor([[3.0, -1.0], [0.5, -4.0]]), 0.5)
    assert trimmed.tolist() == [[3.0, 0.0], [0.0, -4.0]]


def test_election_ignores_weights_and_the_mean_ignores_the_outvoted() -> None:
    values = [torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 1.0])]
    assert elect_and_average(values, [1.0, 10.0], "total").tolist() == [3.0, 5.5]


def test_ranks_that_differ_merge_only_by_cat() -> None:
    sources, _, _ = peft_merge([2, 3], [2, 3], [1, 1], "cat", 0.5, "total", 0)
    with pytest.raises(ValueError, match="equal ranks"):
        ours(sources, [1, 1], "linear", 0.5, "total")
    assert merged_rank("ties", [2, 3]) == 0
    assert merged_rank("cat", [2, 3]) == 5
