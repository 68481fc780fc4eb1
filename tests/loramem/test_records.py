import json
from collections.abc import Callable
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from loramem.records import MergeMethod, Progress, QAPair, Recipe, Source, TrainingOptions, merged_rank

weights = st.floats(min_value=-8, max_value=8, allow_nan=False)
sources = st.lists(
    st.builds(
        Source,
        adapter_id=st.uuids().map(str),
        sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
        weight=weights,
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda source: source.adapter_id,
)


def source(name: str = "a", weight: float = 1.0, sha256: str = "00") -> Source:
    return Source(adapter_id=name, sha256=sha256, weight=weight)


@given(sources, st.randoms())
def test_the_order_of_sources_does_not_change_a_recipe(listed: list[Source], random: object) -> None:
    shuffled = listed[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert Recipe.of("ties", shuffled).digest() == Recipe.of("ties", listed).digest()


@given(sources, st.floats(min_value=0.01, max_value=1))
def test_a_recipe_survives_being_a_path(listed: list[Source], density: float) -> None:
    recipe = Recipe.of("ties", listed, density)
    assert Recipe.from_path(recipe.path()) == recipe
    assert Recipe.from_path(recipe.path()).path() == recipe.path()


@pytest.mark.parametrize(
    "changed",
    [
        Recipe.of("linear", [source(), source("b")]),
        Recipe.of("product_ties", [source(), source("b")]),
        Recipe.of("ties", [source(), source("b")], density=0.2),
        Recipe.of("ties", [source(), source("b")], sign_method="frequency"),
        Recipe.of("ties", [source(weight=0.5), source("b")]),
        Recipe.of("ties", [source(sha256="01"), source("b")]),
        Recipe.of("ties", [source(), source("c")]),
        Recipe.of("ties", [source(), source("b"), source("c")]),
        Recipe.of("ties", [source()]),
    ],
)
def test_whatever_changes_the_weights_changes_the_digest(changed: Recipe) -> None:
    assert changed.digest() != Recipe.of("ties", [source(), source("b")]).digest()


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_random_trims_differ_by_their_seed(method: MergeMethod) -> None:
    both = [source(), source("b")]
    assert Recipe.of(method, both, seed=1).digest() != Recipe.of(method, both).digest()


def test_every_method_of_one_source_is_the_same_recipe() -> None:
    recipes = {Recipe.of(method, [source()], 0.2, "frequency", 5).digest() for method in get_args(MergeMethod)}
    assert len(recipes) == 1


@pytest.mark.parametrize("method", ["linear", "cat", "product_linear"])
def test_what_a_method_ignores_does_not_change_its_recipe(method: MergeMethod) -> None:
    both = [source(), source("b")]
    assert Recipe.of(method, both, 0.1, "frequency", 5) == Recipe.of(method, both)


@pytest.mark.parametrize(
    ("method", "rank"), [("cat", 24), ("ties", 16), ("dare_linear", 16), ("product_ties", 16), ("product_linear", 16)]
)
def test_unequal_ranks_merge_at_the_greatest_or_at_their_sum(method: MergeMethod, rank: int) -> None:
    assert merged_rank(method, [8, 16]) == rank
    assert merged_rank(method, [8, 8]) == (16 if method == "cat" else 8)


def test_the_canonical_form_is_sorted_and_has_no_spaces() -> None:
    text = Recipe.of("cat", [source()]).canonical()
    assert " " not in text
    assert list(json.loads(text)) == sorted(json.loads(text))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Recipe(method="ties", sources=()),
        lambda: Recipe.of("ties", [source(str(number)) for number in range(9)]),
        lambda: Recipe.of("ties", [source()], density=0),
        lambda: Recipe.of("ties", [source()], density=1.1),
        lambda: source(weight=float("nan")),
        lambda: source(weight=float("inf")),
        lambda: Recipe.of("median", [source()]),  # type: ignore[arg-type]
        lambda: TrainingOptions(rank=7),
        lambda: TrainingOptions(max_seconds=0),
        lambda: TrainingOptions(formats=()),
        lambda: TrainingOptions.model_validate({"rnk": 8}),
        lambda: QAPair(question="", answer="a"),
        lambda: QAPair(question="q", answer="a" * 2001),
        lambda: Progress(phase="cook"),
    ],
)
def test_what_cannot_be_is_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ValidationError):
        build()


def test_records_are_values() -> None:
    assert source() == source()
    assert hash(source()) == hash(source())
    with pytest.raises(ValidationError, match="frozen"):
        source().weight = 2  # type: ignore[misc]
