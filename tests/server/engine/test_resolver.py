"""Model names that are recipes: what they mean, and that a wrong one is an unknown model and nothing worse."""

import asyncio
import json
import logging
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.lora.resolver import LoRAResolverRegistry

from loramem.errors import SettingsError, StoredDataDamaged
from loramem.records import Recipe
from loramem.store import MANIFEST, WEIGHTS, AdapterStore
from server.engine.plugin import ADAPTERS_VARIABLE
from server.engine.resolver import (
    LONGEST_NAME,
    RESOLVER,
    NamedMerge,
    RecipeResolver,
    parse_name,
    pinned_recipe,
    register_resolver,
)
from tests.server.learned import store_adapter

# names


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("loramem:ada_x", NamedMerge("linear", {"ada_x": 1.0})),
        ("loramem:ties", NamedMerge("linear", {"ties": 1.0})),  # without `?` it is an adapter
        ("loramem:linear?ada_x=1", NamedMerge("linear", {"ada_x": 1.0})),
        ("loramem:linear?ada_y=0.25&ada_x=-2e-1", NamedMerge("linear", {"ada_y": 0.25, "ada_x": -0.2})),
        ("loramem:cat?x=0&y=100", NamedMerge("cat", {"x": 0.0, "y": 100.0})),
        ("loramem:ties?x=1&y=1", NamedMerge("ties", {"x": 1.0, "y": 1.0}, 0.5, "total")),
        ("loramem:ties?x=1&density=0.2&y=1", NamedMerge("ties", {"x": 1.0, "y": 1.0}, 0.2, "total")),
        ("loramem:ties?sign_method=frequency&x=1&density=1", NamedMerge("ties", {"x": 1.0}, 1.0, "frequency")),
        ("loramem:dare_linear?x=1&seed=7&density=0.9", NamedMerge("dare_linear", {"x": 1.0}, 0.9, seed=7)),
        ("loramem:dare_ties?x=1&sign_method=frequency", NamedMerge("dare_ties", {"x": 1.0}, 0.5, "frequency")),
        ("loramem:product_ties?x=1&density=0.2", NamedMerge("product_ties", {"x": 1.0}, 0.2)),
    ],
)
def test_a_name_spells_out_a_merge(name: str, meant: NamedMerge) -> None:
    assert parse_name(name) == meant


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("loramem:", "adapter id"),
        ("loramem:Ada_x", "adapter id"),
        ("loramem:../../etc", "adapter id"),
        ("loramem:ada_x\n", "adapter id"),
        ("loramem:" + "x" * 33, "adapter id"),
        ("loramem:\ud800", "adapter id"),
        ("loramem:?x=1", "method"),
        ("loramem:mean?x=1", "method"),
        ("loramem:TIES?x=1", "method"),
        ("loramem:ties?", "pair"),
        ("loramem:ties?x", "pair"),
        ("loramem:ties?x=1&", "pair"),
        ("loramem:ties?x=1&x=1", "twice"),
        ("loramem:ties?x=1&density=0.5&density=0.5", "twice"),
        ("loramem:ties?X=1", "adapter id"),
        ("loramem:ties?x=1&Density=0.5", "adapter id"),
        ("loramem:ties?%78=1", "adapter id"),
        ("loramem:ties?density=0.5", "0 adapters"),
        ("loramem:cat?" + "&".join(f"a{i}=1" for i in range(9)), "9 adapters"),
        ("loramem:linear?x=1&density=0.5", "takes no density; it is for dare_linear, dare_ties,"),
        ("loramem:dare_linear?x=1&sign_method=total", "takes no sign_method"),
        ("loramem:ties?x=1&seed=1", "takes no seed"),
        ("loramem:product_linear?x=1&seed=1", "takes no seed"),
        *((f"loramem:dare_ties?x=1&seed={text}", "no whole number") for text in ("", "-1", "1.0", "2147483648", "१")),
        ("loramem:ties?x=1&density=0", "density"),
        ("loramem:ties?x=1&density=1.01", "density"),
        ("loramem:ties?x=1&density=-0.5", "density"),
        ("loramem:ties?x=1&density=nan", "density"),
        ("loramem:ties?x=1&sign_method=mean", "sign_method"),
        ("loramem:ties?x=" + "1" * LONGEST_NAME, "characters"),
        *((f"loramem:ties?x={text}", "no number") for text in ("", "nan", "inf", "-inf", "1e999", "101", "-101", "+1")),
        *((f"loramem:ties?x={text}", "no number") for text in ("1_0", " 1", ".5", "1.", "0x1", "१", "1=1", "1\n")),
    ],
)
def test_a_wrong_name_says_why(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_name(name)


@given(st.text(alphabet="abtiescnlr?=&.-0123456789_ \x00é", max_size=60) | st.text(max_size=30))
def test_any_text_is_a_merge_or_a_value_error(text: str) -> None:
    try:
        merge = parse_name("loramem:" + text)
    except ValueError:
        return
    assert 1 <= len(merge.weights) <= 8
    assert all(math.isfinite(weight) for weight in merge.weights.values())
    assert 0 < merge.density <= 1


# resolving


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM, once imported, keeps its records from the root logger, where pytest listens."""
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters")


def resolve(store: AdapterStore, name: str) -> str | None:
    """The path that vLLM would get."""
    request = asyncio.run(RecipeResolver(store).resolve_lora("base", name))
    if request is None:
        return None
    assert request.lora_name == name
    return str(request.lora_path)


def recipe_in(path: str | None) -> Recipe:
    assert path is not None
    recipe = Recipe.from_path(path)
    assert path == recipe.path()
    return recipe


def test_the_path_is_the_recipe_with_checksums(store: AdapterStore) -> None:
    (x, stored_x), (y, stored_y) = (store_adapter(store, seed=seed) for seed in (1, 2))
    name = f"loramem:dare_ties?{y.adapter_id}=0.5&{x.adapter_id}=2&density=0.3&sign_method=frequency&seed=7"
    recipe = recipe_in(resolve(store, name))
    assert (recipe.method, recipe.density, recipe.sign_method, recipe.seed) == ("dare_ties", 0.3, "frequency", 7)
    found = {source.adapter_id: (source.sha256, source.weight) for source in recipe.sources}
    assert found == {x.adapter_id: (stored_x.sha256, 2.0), y.adapter_id: (stored_y.sha256, 0.5)}


def test_a_single_adapter_keeps_its_strength(store: AdapterStore) -> None:
    manifest, _ = store_adapter(store)
    path = resolve(store, f"loramem:{manifest.adapter_id}")
    assert recipe_in(path).sources[0].weight == 1
    assert path == resolve(store, f"loramem:linear?{manifest.adapter_id}=1")


def test_the_order_of_adapters_does_not_matter(store: AdapterStore) -> None:
    x, y = (store_adapter(store, seed=seed)[0].adapter_id for seed in (1, 2))
    assert resolve(store, f"loramem:cat?{x}=1&{y}=2") == resolve(store, f"loramem:cat?{y}=2.0&{x}=1e0")


@pytest.mark.parametrize("name", ["loramem:gone", "loramem:ties?gone=1&gone_too=1", "loramem:mean?x=1"])
def test_an_unknown_model_is_none_and_the_log_says_why(
    store: AdapterStore, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with caplog.at_level(logging.WARNING):
        assert resolve(store, name) is None
    (record,) = caplog.records
    assert name in record.message
    assert "gone" in record.message or "method" in record.message


def test_a_name_cannot_write_lines_into_the_log(store: AdapterStore, caplog: pytest.LogCaptureFixture) -> None:
    assert resolve(store, "loramem:x\nERROR " + "y" * 5000) is None
    assert "\n" not in caplog.text.removesuffix("\n")
    assert len(caplog.text) < 500


def test_other_names_are_left_to_others_in_silence(store: AdapterStore, caplog: pytest.LogCaptureFixture) -> None:
    assert resolve(store, "some/other-model") is None
    assert resolve(store, "loramem") is None
    assert not caplog.records


def test_adapters_of_two_base_models_do_not_mix(store: AdapterStore) -> None:
    x, y = (store_adapter(store, fingerprint=letter * 64)[0].adapter_id for letter in "ab")
    assert resolve(store, f"loramem:{x}") is not None
    assert resolve(store, f"loramem:linear?{x}=1&{y}=1") is None


@pytest.mark.parametrize("change", [{"adapter_id": "other"}, {"sha256": {}}, {"rank": "no number"}])
def test_an_unusable_manifest_is_an_unknown_model(store: AdapterStore, change: dict[str, object]) -> None:
    manifest, _ = store_adapter(store)
    file = store.path(manifest.adapter_id) / MANIFEST
    file.write_text(json.dumps({**manifest.model_dump(), **change}))
    with pytest.raises(StoredDataDamaged):
        pinned_recipe(NamedMerge("linear", {manifest.adapter_id: 1.0}), store)
    assert resolve(store, f"loramem:{manifest.adapter_id}") is None


def test_the_weights_are_not_read(store: AdapterStore) -> None:
    """The engine reads and checks them when it merges; naming a model stays cheap."""
    manifest, _ = store_adapter(store)
    (store.path(manifest.adapter_id) / WEIGHTS).unlink()
    assert resolve(store, f"loramem:{manifest.adapter_id}") is not None


# registering


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """vLLM's registry, empty for the test."""
    resolvers: dict[str, object] = {}
    monkeypatch.setattr(LoRAResolverRegistry, "resolvers", resolvers)
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    monkeypatch.setenv(ADAPTERS_VARIABLE, "")
    return resolvers


def test_it_is_registered_once(
    registry: dict[str, object], monkeypatch: pytest.MonkeyPatch, store: AdapterStore
) -> None:
    monkeypatch.setenv(ADAPTERS_VARIABLE, str(store.root))
    manifest, _ = store_adapter(store)
    register_resolver(ADAPTERS_VARIABLE)
    first = registry[RESOLVER]
    register_resolver(ADAPTERS_VARIABLE)
    assert registry == {RESOLVER: first}
    assert isinstance(first, RecipeResolver)
    assert asyncio.run(first.resolve_lora("base", f"loramem:{manifest.adapter_id}")) is not None


def test_by_default_the_engine_gets_the_folder_of_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORAMEM_HOME", str(tmp_path))
    register_resolver(ADAPTERS_VARIABLE)
    assert os.environ[ADAPTERS_VARIABLE] == str(tmp_path.resolve() / "adapters")


def test_wrong_settings_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMEM_PORT", "none")
    with pytest.raises(SettingsError, match="LORAMEM_PORT"):
        register_resolver(ADAPTERS_VARIABLE)


def test_where_vllm_would_not_ask_nothing_is_touched(
    registry: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0")
    monkeypatch.setenv("LORAMEM_PORT", "none")
    register_resolver(ADAPTERS_VARIABLE)
    assert not registry
    assert os.environ[ADAPTERS_VARIABLE] == ""
