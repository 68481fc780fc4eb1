"""The report as it stands in `benchmarks/REPORT.md`, and every command that it would hold with the results of today."""

import argparse
import shlex
from importlib import import_module

import pytest

from benchmarks import recall, recipe_arms
from benchmarks.datasets import DATA_SETS
from benchmarks.passages import DATA
from benchmarks.recall_methods import chosen_methods
from benchmarks.report import HERE, answers, read_results, report
from benchmarks.report_questions import QUESTIONS

RESULTS = read_results(HERE / "results")
MADE = report(answers(RESULTS), RESULTS)
LINES = (*MADE.splitlines(), *(question.command for question in QUESTIONS))
COMMANDS = [line for line in dict.fromkeys(LINES) if line.startswith("python -m benchmarks.")]
RECALLS = [line for line in COMMANDS if line.startswith("python -m benchmarks.recall ")]


def test_the_report_is_of_the_results_beside_it() -> None:
    written = (HERE / "REPORT.md").read_text(encoding="utf-8")
    assert written == MADE, "results or questions have changed: run `python -m benchmarks.report`"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one_that_its_benchmark_takes(command: str) -> None:
    options = parsed(command)
    if command in RECALLS:
        assert chosen_methods(options.methods)
    if command.startswith("python -m benchmarks.recipes "):
        assert recipe_arms.chosen(options.only)


@pytest.mark.parametrize("command", RECALLS)
def test_there_are_as_many_documents_as_a_command_asks_for(command: str) -> None:
    options = parsed(command)
    if options.data or not (DATA / DATA_SETS[options.dataset].place).exists():
        pytest.skip(f"{options.dataset} is not here")
    planned, plan = recall._options(shlex.split(command)[3:])
    assert planned.documents == options.documents
    assert {len(items) for items in plan.draws.values()} == {options.documents}


def parsed(command: str) -> argparse.Namespace:
    """By the benchmark's own parser."""
    _, _, name, *given = shlex.split(command)
    options: argparse.Namespace = import_module(name)._parser().parse_args(given)
    return options
