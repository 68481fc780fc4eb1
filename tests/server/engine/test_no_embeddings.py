"""Which parts of a model get slots for LoRA: all linear layers, and embedding and head in a stock vLLM alone."""

from typing import Any, ClassVar

import pytest
from torch import nn
from vllm.lora.utils import get_supported_lora_modules

from server.engine import plugin
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
    plugin._leave_embeddings_out(runner)
    whole = Model()
    whole.add_module("language_model", Model())
    assert runner().load_lora_model(whole, "configuration", "device") == (supported, ("configuration", "device"))
    assert get_supported_lora_modules(Model()), "another model of the same class is left as it was"
