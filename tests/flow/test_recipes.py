"""Many more recipes than slots, asked at once, while adapters are deleted and published anew."""

import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from loramem.base_model import BaseModel

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
TOLERANCE = 0.1
"""Of a log-probability: bfloat16 rounds by what else is in the batch."""
POOL_MIB, SPARE_MIB = 40, 100


@pytest.fixture(scope="module")
def storm(base_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("storm")
    command = [sys.executable, "-m", "tests.flow.recipe_storm", str(home), str(base_model.path)]
    with (home / "log").open("w") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, timeout=1800, check=False)
    assert done.returncode == 0, (home / "log").read_text()[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def distance(first: Sequence[float], second: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


def test_no_recipe_gets_the_weights_of_another(storm: Any) -> None:
    reference, answers = storm["reference"], storm["answers"]
    assert len(answers) == 80
    for number, among_others in enumerate(answers[: len(reference)]):
        distances = [distance(alone, among_others) for alone in reference]
        assert distances[number] == min(distances)
        assert distances[number] <= TOLERANCE
    assert min(distance(a, b) for a, b in combinations(reference, 2)) > TOLERANCE  # another's weights would show


def test_the_engine_lives_and_the_base_model_is_as_before(storm: Any) -> None:
    assert storm["running"]
    before, after = storm["base"]
    assert distance(before, after) <= TOLERANCE


def test_what_is_gone_is_named(storm: Any) -> None:
    assert storm["gone"].startswith("stored-data-damaged: adapter ada_never_opened")


def test_republished_adapters_answer_as_they_did(storm: Any) -> None:
    assert distance(storm["republished"], storm["reference"][0]) <= TOLERANCE


def test_memory_stays_in_its_budget_however_many_merges_are_registered(storm: Any) -> None:
    host = storm["tiers"]["host"]
    assert host["evictions"] > 0
    assert host["bytes"] <= POOL_MIB << 20
    assert storm["memory_mib"] <= POOL_MIB + SPARE_MIB  # vLLM's own copies of 80 merges would be 400 MB


def test_a_killed_engine_fails_what_it_was_at(storm: Any) -> None:
    assert storm["killed"] == {"raised": ["EngineUnavailable", "EngineUnavailable"], "dead": True}
