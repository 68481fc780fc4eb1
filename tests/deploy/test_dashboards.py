"""The written dashboards are what the code makes, ask for what exists, and can be read."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from deploy.grafana import generate
from deploy.grafana.expressions import FOLDER, Expression, expressions
from deploy.grafana.panels import GOOD
from loramem.database import Database
from loramem.migrate import migrate
from tests.deploy import exported
from tests.deploy.promql import Known, labels_of, problems, selectors, shown
from tests.rules import ROOT

BOARDS = sorted(generate.BOARDS)
ONE_VALUE = {"job", "slo"}
"""Labels that a panel asks for with one value, or whose processes differ by `instance` anyway."""


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    folder = tmp_path_factory.mktemp("metrics")
    database = Database(f"sqlite:///{folder / 'loramem.db'}")
    migrate(database)
    database.close()
    return exported.known(folder)


def model(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return read


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in model(name)["panels"] if panel["type"] != "row"]


def asked(one: Expression) -> str:
    return f"{one.name} {one.legend}"


def test_the_written_dashboards_are_what_the_code_makes() -> None:
    assert generate.main(["--check"]) == 0, "run: python -m deploy.grafana.generate"
    assert {file.stem for file in FOLDER.glob("*.json")} == set(BOARDS)


def test_a_difference_is_found_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    assert generate.main(["--check"]) == 1
    assert not list(tmp_path.iterdir())
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    (tmp_path / "stores.json").write_text("{}")
    assert generate.main(["--check"]) == 1


@pytest.mark.parametrize("one", expressions(), ids=asked)
def test_an_expression_asks_for_what_is_exported(one: Expression, known: Known) -> None:
    assert problems(one.filled(), known) == []
    missing = shown(one.legend) - labels_of(one.filled(), known)
    assert not missing, f"the legend shows {missing}, which the expression does not give"


def test_series_of_a_panel_are_told_apart(known: Known) -> None:
    """Every label that is left in a result is in its legend; heat maps have theirs as an axis, annotations none."""
    for one in expressions():
        left = labels_of(one.filled(), known) - ONE_VALUE
        if one.legend not in ("", "{{le}}"):
            assert left <= shown(one.legend), one


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_can_be_read(name: str) -> None:
    for panel in panels(name):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"].get("unit"), panel["title"]
        assert panel["targets"], panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in (*panel["targets"], panel))


@pytest.mark.parametrize("name", BOARDS)
def test_a_single_number_is_of_now_and_not_the_last_that_there_was(name: str) -> None:
    for panel in panels(name):
        now = panel["type"] == "stat"
        for target in panel["targets"]:
            assert (target["instant"], target["range"]) == (now, not now), panel["title"]


@pytest.mark.parametrize("name", BOARDS)
def test_a_single_number_that_is_missing_is_not_green(name: str) -> None:
    """Grafana shows it in the first step's colour."""
    for panel in panels(name):
        if panel["type"] == "stat":
            shown_as = panel["fieldConfig"]["defaults"]
            assert shown_as["noValue"], panel["title"]
            assert shown_as["thresholds"]["steps"][0]["color"] != GOOD, panel["title"]


@pytest.mark.parametrize("name", BOARDS)
def test_titles_and_numbers_are_unique(name: str) -> None:
    titles = [panel["title"] for panel in panels(name)]
    assert len(set(titles)) == len(titles)
    numbers = [panel["id"] for panel in model(name)["panels"]]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("name", BOARDS)
def test_panels_fill_their_lines_and_do_not_overlap(name: str) -> None:
    taken: dict[int, int] = {}
    for panel in model(name)["panels"]:
        place = panel["gridPos"]
        for line in range(place["y"], place["y"] + place["h"]):
            for column in range(place["x"], place["x"] + place["w"]):
                assert taken.setdefault(line * 24 + column, panel["id"]) == panel["id"], panel["title"]
        assert place["x"] + place["w"] <= 24
    lines = {cell // 24 for cell in taken}
    assert len(taken) == 24 * len(lines), "a line has a gap"
    assert lines == set(range(len(lines)))


@pytest.mark.parametrize("name", BOARDS)
def test_dashboards_lead_to_each_other_and_their_variables_are_used(name: str) -> None:
    read = model(name)
    assert read["tags"] == ["loramem"]
    assert [link["tags"] for link in read["links"]] == [["loramem"]]
    variables = {variable["name"]: variable for variable in read["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    text = json.dumps(read["panels"])
    used = {variable for variable in re.findall(r"\$\{?(\w+)", text) if not variable.startswith("__")}
    assert used == set(variables)


def test_what_is_exported_is_on_a_dashboard_or_in_a_rule(known: Known) -> None:
    """Of loramem's own; what nobody looks at need not be measured."""
    texts = [one.filled() for one in expressions()] + [rule["expr"] for rule in exported.all_rules()]
    looked_at = {base(name) for text in texts for name in selectors(text)}
    own = {base(name) for name in known.metrics if name.startswith("loramem_")}
    assert own - looked_at == set()


def test_every_metric_is_in_the_documentation(known: Known) -> None:
    documented = set(re.findall(r"^\| `(loramem_\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    assert documented == {base(name) for name in known.metrics if name.startswith("loramem_")}


def test_the_labels_in_the_documentation_are_the_metrics(known: Known) -> None:
    rows = re.findall(
        r"^\| `(loramem_\w+)` \| \w+ \|([^|]*)\|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE
    )
    labels = {base(name): labels - {"le"} - exported.TARGET for name, labels in known.metrics.items()}
    assert rows
    for name, cell in rows:
        assert {text.split("=")[0] for text in re.findall(r"`([^`]+)`", cell)} == labels[name], name


def test_what_needs_a_gpu_is_in_the_source() -> None:
    source = (ROOT / "trainer_worker" / "metrics.py").read_text()
    assert all(f'"{name}"' in source for name in exported.WITH_A_GPU)


def base(sample: str) -> str:
    """A counter keeps its `_total`; the samples of a histogram are one metric."""
    return re.sub("_(bucket|sum|count)$", "", sample)


# The checks check: what each looks for is found.

FEW = Known(
    {"a_total": frozenset({"mode"}), "h_bucket": frozenset({"le", "mode"}), "g": frozenset()},
    {"mode": frozenset({"lora"})},
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sum by (mode) (rate(a_total[5m]))", None),
        ('histogram_quantile(0.9, sum by (le) (rate(h_bucket{mode=~"lora|.*"}[5m])))', ".* is no value"),
        ("rate(b_total[5m])", "nothing exports b_total"),
        ('a_total{model="x"}', "model is no label"),
        ('a_total{mode="loar"}', "loar is no value"),
        ("sum by (tier) (a_total)", "tier of `by`"),
        ("rate(g[5m])", "no counter"),
        ("histogram_quantile(0.9, sum by (mode) (rate(h_bucket[5m])))", "without le"),
        ("a_total / on (tier) g", "tier of `on`"),
    ],
)
def test_a_wrong_expression_is_found(text: str, problem: str | None) -> None:
    found = problems(text, FEW)
    assert found == [] if problem is None else any(problem in one for one in found), found


def test_what_is_no_promql_is_refused() -> None:
    with pytest.raises(ValueError):
        problems("sum(rate(a_total[5m])", FEW)


def test_names_of_vllm_are_read_from_its_source() -> None:
    source = """
class Logger:
    def __init__(self):
        self._gauge_cls(name="vllm:g", documentation="", labelnames=labelnames + ["reason"])
        self._counter_cls(name="vllm:c", documentation="", labelnames=["model_name"])
        self._histogram_cls(name="vllm:h", documentation="", labelnames=labelnames)
"""
    found = dict(exported.vllm_names(source))
    assert found["vllm:g"] == {"model_name", "engine", "reason"}
    assert found["vllm:c_total"] == {"model_name"}
    assert found["vllm:h_bucket"] == {"model_name", "engine", "le"}
    of_vllm = exported.of_vllm()
    assert "vllm:time_to_first_token_seconds_bucket" in of_vllm
    assert of_vllm["vllm:spec_decode_num_accepted_tokens_total"] == {"model_name", "engine"}
