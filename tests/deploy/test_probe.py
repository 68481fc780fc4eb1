"""The probe over a stand-in for Prometheus: what counts as data, what may be missing, and what ends it."""

import json
from collections.abc import Callable

import httpx
import pytest

from deploy.grafana.expressions import expressions
from deploy.grafana.probe import MAY_BE_EMPTY, RIGHTLY_EMPTY, main

Answer = Callable[[str], list[str]]
GPU = "loramem_gpu_memory_bytes"


def prometheus(values: Answer) -> httpx.MockTransport:
    """Answers each query with one series for each of its values."""

    def handle(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/api/v1/query"
        query = request.url.params["query"]
        result = [{"metric": {}, "value": [1.0, value]} for value in values(query)]
        return httpx.Response(200, json={"status": "success", "data": {"resultType": "vector", "result": result}})

    return httpx.MockTransport(handle)


def test_data_everywhere_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], prometheus(lambda query: ["1"])) == 0
    count = len(expressions())
    assert f"{count} of {count} expressions have data" in capsys.readouterr().out


@pytest.mark.parametrize("nothing", [[], ["NaN"]])
def test_a_panel_without_data_is_named(nothing: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], prometheus(lambda query: nothing if query == GPU else ["NaN", "0"])) == 1
    assert f"NO DATA: training/GPU memory [{{{{instance}}}}]: {GPU}" in capsys.readouterr().out


def test_a_panel_may_be_allowed_to_be_empty(capsys: pytest.CaptureFixture[str]) -> None:
    allow = ["--allow-empty", "training/GPU memory"]
    assert main(allow, prometheus(lambda query: [] if query == GPU else ["1"])) == 0
    assert "there is no GPU: training/GPU memory" in capsys.readouterr().out


def test_a_panel_without_a_reason_cannot_be_allowed() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--allow-empty", "overview/Engine"], prometheus(lambda query: ["1"]))
    assert ended.value.code == 2


def test_variables_are_filled_in() -> None:
    asked: list[str] = []

    def note(query: str) -> list[str]:
        asked.append(query)
        return ["1"]

    assert main(["--window", "7m", "--span", "3h"], prometheus(note)) == 0
    assert not [query for query in asked if "$" in query]
    assert any("[7m]" in query for query in asked)
    assert any("[3h]" in query for query in asked)


def test_the_report_has_every_expression(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"], prometheus(lambda query: [] if query == GPU else ["1"])) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["expressions"] == len(report["findings"]) == len(expressions())
    assert [one["panel"] for one in report["findings"] if not one["ok"]] == ["training/GPU memory"]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (httpx.Response(400, json={"status": "error", "error": "parse error"}), "parse error"),
        (httpx.Response(502, text="<html>"), "does not answer as Prometheus does"),
    ],
)
def test_no_prometheus_is_no_verdict(reply: httpx.Response, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], httpx.MockTransport(lambda request: reply)) == 2
    assert said in capsys.readouterr().err


def test_a_prometheus_that_is_away_is_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    assert main([], httpx.MockTransport(refuse)) == 2
    assert "connection refused" in capsys.readouterr().err


def test_what_may_be_empty_is_a_panel() -> None:
    assert {*MAY_BE_EMPTY, *RIGHTLY_EMPTY} <= {one.name for one in expressions()}
