import ast
import inspect
import re
from collections.abc import Iterator

import pytest

from loramem import errors
from loramem.errors import BadRequest, InvalidValue, LoramemError, NotFound, SettingsError
from tests.rules import modules


def subclasses(kind: type[LoramemError]) -> Iterator[type[LoramemError]]:
    yield kind
    for each in kind.__subclasses__():
        if each.__module__ == errors.__name__:
            yield from subclasses(each)


TREE = list(subclasses(LoramemError))


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"^(?: {4}|[ │]*[├└]── )(\w+)(?: +(\d{3}))?", errors.__doc__ or "", re.MULTILINE)
    statuses = {kind.__name__: kind.status for kind in TREE}
    assert {name for name, _ in drawn} == set(statuses)
    assert not [name for name, status in drawn if status and statuses[name] != int(status)]


def test_an_error_that_stands_with_what_raises_it_is_named_beside_the_tree() -> None:
    own = {kind.__name__ for kind in TREE}
    elsewhere = {
        f"{name}.{node.name}"
        for name, file in modules().items()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef) and name != errors.__name__ and own & set(map(ast.unparse, node.bases))
    }
    assert set(re.findall(r"`([\w.]+\.\w+)`", errors.__doc__ or "")) == elsewhere


@pytest.mark.parametrize("kind", TREE)
def test_codes_are_unique_slugs_and_statuses_are_errors(kind: type[LoramemError]) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.code)
    assert [each.code for each in TREE].count(kind.code) == 1
    assert 400 <= kind.status < 600
    assert kind.title


def test_a_bad_request_names_key_value_and_what_is_allowed() -> None:
    error = InvalidValue("top_k=9: at most 8", key="top_k", value=9, allowed="1 to 8", limit=8)
    assert str(error) == error.detail == "top_k=9: at most 8"
    assert error.extra == {"key": "top_k", "value": 9, "allowed": "1 to 8", "limit": 8}


def test_a_bad_request_without_a_key_has_no_empty_ones() -> None:
    assert BadRequest("malformed").extra == {}


def test_not_found_says_what_was_looked_for() -> None:
    assert str(NotFound("job", "job_1")) == "no job 'job_1'"


def test_a_settings_error_ends_a_process_and_is_no_answer() -> None:
    assert issubclass(SettingsError, SystemExit)
    assert not issubclass(SettingsError, LoramemError)


def test_every_error_says_which_failure_it_is() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
    assert set(kinds) == {*TREE, SettingsError}
