"""Which folders may be a base model; the embedded one is unpacked by `tests.conftest`."""

from pathlib import Path

import pytest

from loramem.base_model import resolve_base_model
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
