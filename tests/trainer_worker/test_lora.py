"""Adapters beside frozen layers, against PEFT's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loramem.errors import TrainingFailed
from loramem.records import Placement
from tests.trainer_worker.tiny import save_tiny_model
from trainer_worker import lora
from trainer_worker.adapter import depth_of

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model.requires_grad_(False)
    return model


def everything(name: str) -> bool:
    return True


def fill(parameters: dict[str, nn.Parameter], seed: int) -> dict[str, Tensor]:
    """Noise in every parameter; returned as one adapter's, by name."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=noise) / 8)
    return {name: parameter[0].detach().clone() for name, parameter in parameters.items()}


def peft_model(model: Any, weights: dict[str, Tensor], rank: int) -> Any:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped: Any = get_peft_model(model, config)
    found = set_peft_model_state_dict(wrapped, weights)
    assert not found.unexpected_keys
    return wrapped


def test_logits_and_gradients_are_pefts(model: Any, folder: Path) -> None:
    with lora.attached(model, everything, count=1, rank=4, scaling=2.0) as parameters:
        weights = fill(parameters, 0)
        logits = model(IDS).logits
        ours = dict(
            zip(parameters, torch.autograd.grad(logits.square().mean(), list(parameters.values())), strict=True)
        )
    wrapped = peft_model(model, weights, 4)
    expected = wrapped(IDS).logits
    assert torch.allclose(logits, expected, atol=1e-5)
    theirs = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(expected.square().mean(), list(theirs.values()))
    assert len(theirs) == len(ours) == 2 * 7 * 2
    for name, gradient in zip(theirs, gradients, strict=True):
        assert torch.allclose(ours[name.replace(".default.", ".")][0], gradient, atol=1e-5)


def test_what_is_taken_off_is_the_other_half_of_a_plain_adapter(model: Any) -> None:
    less = some_pairs(model)
    with lora.attached(model, everything, count=1, rank=4, scaling=2.0, less=less) as parameters:
        weights = fill(parameters, 0)
        logits = model(IDS).logits
        gradients = torch.autograd.grad(logits.square().mean(), list(parameters.values()))
        ours = dict(zip(parameters, gradients, strict=True))
    for layer, pair in less.items():
        a, b = lora.peft_name(layer, "A"), lora.peft_name(layer, "B")
        weights |= {a: torch.cat([weights[a], pair.a]), b: torch.cat([weights[b], -pair.b], dim=1)}
    wrapped = peft_model(model, weights, 4 + 3)
    expected = wrapped(IDS).logits
    assert torch.allclose(logits, expected, atol=1e-4)
    theirs = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    for name, gradient in zip(
        theirs, torch.autograd.grad(expected.square().mean(), list(theirs.values())), strict=True
    ):
        live = gradient[:4] if ".lora_A." in name else gradient[:, :4]
        assert torch.allclose(ours[name.replace(".default.", ".")][0], live, atol=1e-4)


def some_pairs(model: Any) -> dict[str, lora.Pair]:
    """Of rank 3."""
    noise = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise) / 8

    return {
        name: lora.Pair(drawn(3, layer.in_features), drawn(layer.out_features, 3))
        for name, layer in lora.linear_layers(model)
    }


@pytest.mark.parametrize(("trained", "products"), [("AB", 3), ("B", 2), ("first layer, B", 1)])
def test_what_is_not_trained_costs_no_product(
    model: Any, trained: str, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = lora.Lora(model.model.layers[0].mlp.up_proj, 2, 4, 2.0)
    fill({"a": layer.a, "b": layer.b}, 0)
    layer.a.requires_grad_("A" in trained)
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1)).requires_grad_("first" not in trained)
    out, calls, bmm = layer(x), list[Tensor](), torch.bmm

    def counted(one: Tensor, other: Tensor) -> Tensor:
        calls.append(one)
        return bmm(one, other)

    monkeypatch.setattr(torch, "bmm", counted)
    out.square().mean().backward()
    assert len(calls) == products
    monkeypatch.undo()
    plain = layer.base(x) + 2.0 * x @ layer.a.transpose(1, 2) @ layer.b.transpose(1, 2)
    (expected,) = torch.autograd.grad(plain.square().mean(), [layer.b])
    assert layer.b.grad is not None
    assert torch.allclose(layer.b.grad, expected, atol=1e-6)
    assert (layer.a.grad is None) == ("A" not in trained)


@pytest.mark.parametrize("takes_off", [False, True])
def test_lanes_go_through_their_own_adapter(model: Any, takes_off: bool) -> None:
    alone, less = [], some_pairs(model) if takes_off else None
    for index in range(2):
        with lora.attached(model, everything, count=1, rank=4, scaling=2.0, less=less) as parameters:
            fill(parameters, index)
            alone.append((model(IDS).logits.detach(), {n: p[0].detach().clone() for n, p in parameters.items()}))
    with lora.attached(model, everything, count=2, rank=4, scaling=2.0, less=less) as parameters:
        with torch.no_grad():
            for name, parameter in parameters.items():
                for index, (_, weights) in enumerate(alone):
                    parameter[index].copy_(weights[name])
        logits = model(torch.cat([IDS, IDS])).logits  # two lanes each
    assert torch.allclose(logits[:2], alone[0][0], atol=1e-5)
    assert torch.allclose(logits[2:], alone[1][0], atol=1e-5)
    assert not torch.allclose(logits[:2], logits[2:], atol=1e-2)


def test_one_adapters_loss_moves_no_other(model: Any) -> None:
    with lora.attached(model, everything, count=2, rank=4, scaling=2.0) as parameters:
        fill(parameters, 0)
        logits = model(IDS).logits
        for gradient in torch.autograd.grad(logits[:1].square().mean(), list(parameters.values())):
            assert gradient[0].any()
            assert not gradient[1].any()


def test_the_model_is_as_before_even_after_an_error(model: Any) -> None:
    before, layers = model(IDS).logits, dict(lora.linear_layers(model))
    with pytest.raises(KeyError), lora.attached(model, everything, count=1, rank=4, scaling=2.0) as parameters:
        parameters["no such"].zero_()
    assert dict(lora.linear_layers(model)) == layers
    assert torch.equal(model(IDS).logits, before)


def test_only_what_is_wanted_gets_an_adapter(model: Any) -> None:
    with lora.attached(model, lambda name: depth_of(name) >= 1, count=1, rank=4, scaling=1.0) as parameters:
        assert {depth_of(name) for name in parameters} == {1}
    assert depth_of("model.norm") == -1


ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
FFN = {"gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("placement", "depths", "leaves"),
    [
        ("late", {1}, ATTENTION | FFN),
        ("early", {0}, ATTENTION | FFN),
        ("all", {0, 1}, ATTENTION | FFN),
        ("ffn", {0, 1}, FFN),
        ("attention", {0, 1}, ATTENTION),
    ],
)
def test_each_placement_takes_its_layers(model: Any, placement: Placement, depths: set[int], leaves: set[str]) -> None:
    found = lora.placed(model, placement, 1)
    assert len(found) == len(set(found)) == len(depths) * len(leaves)
    assert {(depth_of(name), name.rsplit(".", 1)[-1]) for name in found} == {
        (d, leaf) for d in depths for leaf in leaves
    }


class Named(nn.Module):
    """A model that has linear layers of these names, and one that gives the logits."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        for name in names:
            at: nn.Module = self
            *path, leaf = name.split(".")
            for step in path:
                if step not in dict(at.named_children()):
                    at.add_module(step, nn.Module())
                at = at.get_submodule(step)
            at.add_module(leaf, nn.Linear(2, 2))

    def get_output_embeddings(self) -> nn.Module:
        return self.head


@pytest.mark.parametrize(
    ("attention", "ffn"),
    [
        ("gpt_neox.layers.0.attention.query_key_value", "gpt_neox.layers.0.mlp.dense_h_to_4h"),
        ("transformer.h.0.self_attention.dense", "transformer.h.0.mlp.dense_4h_to_h"),
        ("model.layers.0.self_attn.o_proj", "model.layers.0.block_sparse_moe.experts.1.w2"),
        ("model.layers.0.linear_attn.in_proj", "model.layers.0.feed_forward.w1"),
        ("transformer.blocks.0.attn.Wqkv", "transformer.blocks.0.ffn.up_proj"),
        ("model.decoder.layers.0.self_attn.q_proj", "model.decoder.layers.0.fc1"),
        ("mlp_mixer.layers.0.attn.q", "attention_model.layers.0.mlp.up"),
    ],
)
def test_the_parts_of_other_models_are_told_apart(attention: str, ffn: str) -> None:
    other = Named(attention, ffn, "model.layers.0.other.proj", "attn_in.mlp")
    assert lora.placed(other, "attention", 0) == [attention]
    assert lora.placed(other, "ffn", 0) == [ffn]


@pytest.mark.parametrize("placement", ["early", "ffn", "attention"])
def test_a_base_without_such_a_layer_fails_by_name(placement: Placement) -> None:
    with pytest.raises(TrainingFailed, match=f"placement={placement}: no linear layer"):
        lora.placed(Named("model.layers.0.other.proj"), placement, 0)


def test_the_first_a_is_by_name_and_seed_and_the_same_for_all(model: Any) -> None:
    def started(seed: int, count: int) -> dict[str, Tensor]:
        with lora.attached(model, everything, count=count, rank=4, scaling=1.0) as parameters:
            fill(parameters, 3)
            lora.start(parameters, seed)
            return {name: parameter.detach().clone() for name, parameter in parameters.items()}

    one, three, other = started(1, 1), started(1, 3), started(2, 1)
    sides = {name.rsplit(".", 2)[1] for name in one}
    assert sides == {"lora_A", "lora_B"}
    for name, tensor in one.items():
        assert torch.equal(three[name], tensor.expand_as(three[name]))
        if ".lora_B." in name:
            assert not tensor.any()
        else:
            assert not torch.equal(tensor, other[name])
            assert 0 < tensor.abs().max() <= tensor.shape[-1] ** -0.5
    first, second = (tensor for name, tensor in one.items() if "q_proj.lora_A" in name)
    assert not torch.equal(first, second)
