"""Which folders may be a base model; the embedded one is unpacked by `tests.conftest`."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from loramem.base_model import TWICE, WANTED, BaseModel, kv_bytes, max_positions, resolve_base_model
from loramem.errors import SettingsError
from loramem.settings import Settings
from loramem.store import AdapterStore

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


def test_a_name_that_is_no_folder_and_no_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"LORAMEM_MODEL='/no/such/folder' is neither"):
        resolve_base_model(Settings(home=tmp_path, model="/no/such/folder"))


@pytest.mark.parametrize("changed", [FILES[0], FILES[2]])
def test_the_fingerprint_is_of_configuration_and_weights(folder: Path, changed: str) -> None:
    before = resolve_base_model(Settings(model=str(folder))).fingerprint
    assert resolve_base_model(Settings(model=str(folder))).fingerprint == before
    (folder / changed).write_text("[]")
    assert resolve_base_model(Settings(model=str(folder))).fingerprint != before


def test_the_fingerprint_of_the_embedded_model_stays(base_model: BaseModel) -> None:
    """Every adapter that was trained on it carries this one."""
    assert base_model.fingerprint == "14d36ddfa8dd1b94404e6c6220a8c7e51dd8b0f57f4c69c9ee585f4f3561b1ec"


HEADS = {"num_hidden_layers": 30, "num_key_value_heads": 3, "num_attention_heads": 9, "hidden_size": 576}


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (HEADS, 23040),
        (HEADS | {"head_dim": 128}, 46080),
        (HEADS | {"sliding_window": 4096, "use_sliding_window": False}, 23040),
        (HEADS | {"sliding_window": 4096}, 0),
        (HEADS | {"kv_lora_rank": 512}, 0),
        (HEADS | {"num_key_value_heads": None}, 0),
        ({}, 0),
    ],
)
def test_what_a_token_takes_in_the_cache_is_told_where_it_is_known(
    folder: Path, config: dict[str, Any], size: int
) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    model = resolve_base_model(Settings(model=str(folder)))
    assert kv_bytes(model, "bfloat16") == size
    assert kv_bytes(model, "float32") == 2 * size


class Hub:
    """Stands for the download: every commit is a folder, and `main` is where upstream has come to."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.main = cache, "a" * 40
        self.asked: list[tuple[str, str | None]] = []
        self.downloaded: dict[str, str] = {}
        self.online = True

    def snapshot_download(
        self, repository: str, *, revision: str | None, local_files_only: bool, **patterns: Any
    ) -> str:
        online = self.online and not local_files_only
        self.asked.append((repository, revision))
        if revision is None:
            revision = self.downloaded.setdefault(repository, self.main) if online else self.downloaded.get(repository)
        folder = self.cache / (revision or "nowhere")
        if not folder.is_dir():
            if not online:
                raise LocalEntryNotFoundError("outgoing traffic has been disabled")
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps({"commit": folder.name}))
            (folder / "tokenizer.json").write_text("{}")
            (folder / "model.safetensors").write_text("{}")
        assert all(name in patterns["allow_patterns"] for name in ("*.json", "*.safetensors", "*.jinja"))
        assert "consolidated*" in patterns["ignore_patterns"]
        return str(folder)


class TestFromTheHub:
    @pytest.fixture
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
        (tmp_path / "hub").mkdir()
        made = Hub(tmp_path / "hub")
        monkeypatch.setattr("huggingface_hub.snapshot_download", made.snapshot_download)
        return made

    def resolve(self, home: Path, model: str = "org/tiny") -> BaseModel:
        return resolve_base_model(Settings(home=home, model=model))

    def test_the_first_commit_stays_whatever_comes_upstream(self, hub: Hub, tmp_path: Path) -> None:
        before = self.resolve(tmp_path)
        assert (before.path, before.name) == (hub.cache / ("a" * 40), "org/tiny")
        hub.main = "b" * 40
        assert self.resolve(tmp_path) == before
        assert hub.asked[-1] == ("org/tiny", "a" * 40)

    def test_what_was_downloaded_before_any_was_kept_stays_too(self, hub: Hub, tmp_path: Path) -> None:
        hub.snapshot_download(
            "org/tiny", revision=None, local_files_only=False, allow_patterns=WANTED, ignore_patterns=TWICE
        )
        hub.main = "b" * 40
        assert self.resolve(tmp_path).path.name == "a" * 40

    def test_it_is_kept_with_the_adapters_of_which_it_is_none(self, hub: Hub, tmp_path: Path) -> None:
        self.resolve(tmp_path)
        store = AdapterStore(Settings(home=tmp_path).adapters_path)
        assert [file.read_text() for file in store.root.rglob("commit")] == ["a" * 40]
        assert store.ids() == []

    def test_a_commit_may_be_named(self, hub: Hub, tmp_path: Path) -> None:
        self.resolve(tmp_path)
        found = self.resolve(tmp_path, "org/tiny@" + "c" * 40)
        assert (found.path.name, found.name) == ("c" * 40, "org/tiny")

    def test_what_was_downloaded_is_found_offline(self, hub: Hub, tmp_path: Path) -> None:
        before = self.resolve(tmp_path)
        hub.online, hub.main = False, "b" * 40
        assert self.resolve(tmp_path) == before
        with pytest.raises(SettingsError, match=r"LORAMEM_MODEL='org/other' is neither .* has been disabled"):
            self.resolve(tmp_path, "org/other")

    def test_two_first_starts_take_the_same(self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As of gateway and worker, with a commit upstream between their questions."""
        heads = iter(["a" * 40, "b" * 40])
        given: Any = hub.snapshot_download

        def moving(repository: str, *, revision: str | None, local_files_only: bool, **patterns: Any) -> str:
            if local_files_only:
                raise LocalEntryNotFoundError("nothing is there yet")
            return str(given(repository, revision=revision or next(heads), local_files_only=False, **patterns))

        monkeypatch.setattr("huggingface_hub.snapshot_download", moving)
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(self.resolve, [tmp_path, tmp_path]))
        assert found[0] == found[1]
