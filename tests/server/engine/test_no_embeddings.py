"""What is done to a model of loramem's own engine: embedding and head get no slots for LoRA, layers shorter ways."""

from typing import Any, ClassVar
from unittest.mock import Mock

import pytest
from torch import nn
from vllm.lora.utils import get_supported_lora_modules

from server.engine import cpu_layers, plugin
from server.engine.plugin import OWN_VARIABLE


class Model(nn.Module):
    """As vLLM's classes of models say it of themselves, and of the part that another one holds."""

    embedding_modules: ClassVar = {"embed_tokens": "input_embeddings", "lm_head": "output_embeddings"}


class Runner:
    def load_lora_model(self, model: nn.Module, *rest: Any) -> tuple[list[str], tuple[Any, ...]]:
        return sorted(get_supported_lora_modules(model)), rest


@pytest.mark.parametrize(
    ("is_ours", "supported"), [(True, []), (False, ["embed_tokens", "lm_head"])], ids=["loramem's engine", "stock"]
)
def test_embedding_and_head_take_lora_in_a_stock_engine_alone(
    is_ours: bool, supported: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(OWN_VARIABLE, raising=False)
    if is_ours:
        monkeypatch.setenv(OWN_VARIABLE, "1")
    runner = type("Wrapped", (Runner,), {})
    monkeypatch.setattr(cpu_layers, "shorten", shortened := Mock())
    plugin._prepare_own_model(runner)
    whole = Model()
    whole.add_module("language_model", Model())
    assert runner().load_lora_model(whole, "configuration", "device") == (supported, ("configuration", "device"))
    assert shortened.call_count == is_ours
    assert get_supported_lora_modules(Model()), "another model of the same class is left as it was"
