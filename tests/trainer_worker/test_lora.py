"""Adapters beside frozen layers, against PEFT's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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


def test_lanes_go_through_their_own_adapter(model: Any) -> None:
    alone = []
    for index in range(2):
        with lora.attached(model, everything, count=1, rank=4, scaling=2.0) as parameters:
            fill(parameters, index)
            alone.append((model(IDS).logits.detach(), {n: p[0].detach().clone() for n, p in parameters.items()}))
    with lora.attached(model, everything, count=2, rank=4, scaling=2.0) as parameters:
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
