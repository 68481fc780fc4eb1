"""Adapters that could not be loaded, while questions are already asked of them: no step may fail."""

from unittest.mock import Mock

import pytest

from loramem.records import Recipe
from loramem.store import AdapterStore
from server.engine import plugin
from server.engine.virtual import VirtualAdapter
from tests.server.engine import test_plugin
from tests.server.engine.test_plugin import Worker, assert_holds, manager, named, slot_of, sources

store, registered = test_plugin.store, test_plugin.registered  # fixtures


def test_what_was_refused_is_an_empty_adapter_to_what_was_already_asked_of_it(store: AdapterStore) -> None:
    worker, both = Worker(), sources(store, (8, 8))
    recipe = Recipe.of("ties", both)
    path = recipe.path()
    store.remove(both[0].adapter_id)
    first = worker.loramem_activate("name", 3, path)
    assert first["error"] == "StoredDataDamaged"
    worker.manager._apply_adapters({named(path, 3)})  # the step in which it runs
    assert worker.manager.list_adapters() == {3}
    assert not slot_of(worker.manager, 3, 0, 0)[0].any()
    again = worker.loramem_activate("name", 3, path)
    assert again == first, "a question that came just after must not take the empty one for the adapter"


def test_a_merge_that_fails_in_its_slot_is_refused_too(store: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, recipe = Worker(), Recipe.of("ties", sources(store, (8, 8)))
    with monkeypatch.context() as broken:
        broken.setattr(VirtualAdapter, "fill", Mock(side_effect=OSError("a disk that is gone")))
        assert worker.loramem_activate("name", 3, recipe.path())["error"] == "OSError"
        worker.manager._apply_adapters({named(recipe.path(), 3)})
    assert not slot_of(worker.manager, 3, 0, 0)[0].any()
    worker.loramem_activate("other name", 4, recipe.path())
    assert_holds(worker.manager, 4, recipe, 8)


def test_only_the_last_refusals_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "REFUSALS_KEPT", 2)
    made = manager()
    for number in range(1, 5):
        plugin.refuse(made, number, {"error": "OSError", "detail": ""})
        made.add_adapter(named(Recipe.PATH_PREFIX, number))
    assert list(plugin.refusals) == [3, 4]
    assert made.list_adapters() == {3, 4}, "no empty adapter is left that nothing knows to be empty"
