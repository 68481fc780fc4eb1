"""Which folders may be a base model; the embedded one is unpacked by `tests.conftest`."""

import json
from pathlib import Path
from typing import Any

import pytest

from loramem.base_model import max_positions, resolve_base_model
from loramem.errors import SettingsError
from loramem.settings import Settings

FILES = ("config.json", "tokenizer.json", "model-00001-of-00001.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Enough to be taken for a model by what only looks at names."""
    made = tmp_path / "tiny"
    made.mkdir()
    for name in FILES:
        (made / name).write_text("{}")
    return made


def test_a_local_folder_has_its_own_name(folder: Path) -> None:
    found = resolve_base_model(Settings(model=str(folder)))
    assert (found.path, found.name) == (folder.resolve(), "tiny")
    assert resolve_base_model(Settings(model=str(folder), served_model_name="mine")).name == "mine"


@pytest.mark.parametrize(
    ("config", "why"),
    [({"quantization_config": {"quant_method": "awq"}}, "quantised"), ({"text_config": {}}, "more than text")],
)
def test_a_kind_of_model_that_cannot_be_trained_is_refused(folder: Path, config: dict[str, Any], why: str) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingsError, match=why):
        resolve_base_model(Settings(model=str(folder)))


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({}, 0),
        ({"max_position_embeddings": 8192}, 8192),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8}}, 131072),
        (
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope"},
            },
            4096,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 4096},
            },
            4096,
        ),
    ],
)
def test_the_window_is_what_short_and_long_questions_share(folder: Path, config: dict[str, Any], tokens: int) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    assert max_positions(resolve_base_model(Settings(model=str(folder)))) == tokens


@pytest.mark.parametrize("lacking", FILES)
def test_a_folder_that_lacks_a_file_is_told_what_a_model_needs(folder: Path, lacking: str) -> None:
    (folder / lacking).unlink()
    with pytest.raises(SettingsError) as caught:
        resolve_base_model(Settings(model=str(folder)))
    message = str(caught.value)
    assert f"LORAMEM_MODEL={str(folder)!r}" in message
    assert f"has no {lacking.replace('model-00001-of-00001', '*')};" in message
    assert "needs config.json, tokenizer.json, *.safetensors" in message


def test_all_that_an_empty_folder_lacks_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"has no config\.json and no tokenizer\.json and no \*\.safetensors;"):
        resolve_base_model(Settings(model=str(tmp_path)))


def test_a_name_that_is_no_folder_and_no_id_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"LORAMEM_MODEL='/no/such/folder' is neither"):
        resolve_base_model(Settings(model="/no/such/folder"))


@pytest.mark.parametrize("changed", [FILES[0], FILES[2]])
def test_the_fingerprint_is_of_configuration_and_weights(folder: Path, changed: str) -> None:
    before = resolve_base_model(Settings(model=str(folder))).fingerprint
    assert resolve_base_model(Settings(model=str(folder))).fingerprint == before
    (folder / changed).write_text("[]")
    assert resolve_base_model(Settings(model=str(folder))).fingerprint != before
