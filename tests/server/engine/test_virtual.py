"""Names of an adapter's tensors, as the engine has them."""

import pytest
from vllm.model_executor.models.utils import WeightsMapper

from server.engine.layout import Layout
from server.engine.virtual import _in_engine_names

SAVED = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{}.weight"
SHAPES = ((8, 4), (4, 8))


@pytest.mark.parametrize(
    ("renames", "expected"),
    [
        (None, SAVED),
        (
            WeightsMapper(orig_to_new_prefix={"model.language_model.": "language_model.model."}).get_rename_mapper(),
            "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_{}.weight",
        ),
    ],
)
def test_a_layout_gets_the_names_that_the_model_has_for_its_modules(renames: object, expected: str) -> None:
    layout = Layout((SAVED.format("A"), SAVED.format("B")), SHAPES)
    assert _in_engine_names(layout, renames) == Layout((expected.format("A"), expected.format("B")), SHAPES)
