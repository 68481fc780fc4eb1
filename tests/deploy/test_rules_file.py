"""Recording rules and alerts: what they ask for exists, each says what to do, and promtool finds that each fires."""

import os
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.deploy import exported
from tests.deploy.exported import RULES
from tests.deploy.promql import Known, labels_of, problems
from tests.deploy.test_dashboards import known  # noqa: F401 - a fixture
from tests.rules import ROOT

TESTS = RULES.with_name("rules_test.yml")
ALERTS = exported.alerts()


def name_of(rule: dict[str, Any]) -> str:
    return str(rule.get("alert") or rule["record"])


@pytest.mark.parametrize("rule", exported.all_rules(), ids=name_of)
def test_a_rule_asks_for_what_is_exported(rule: dict[str, Any], known: Known) -> None:  # noqa: F811
    assert problems(rule["expr"], known) == []
    texts = "".join(rule.get("annotations", {}).values())
    missing = set(re.findall(r"\$labels\.(\w+)", texts)) - labels_of(rule["expr"], known)
    assert not missing, f"it shows {missing}, which the expression does not give"


@pytest.mark.parametrize("rule", ALERTS, ids=name_of)
def test_an_alert_says_what_it_means_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    page, anchor = rule["annotations"]["runbook"].split("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}
    assert anchor == rule["alert"].lower()


def test_every_alert_fires_once_and_is_silent_once() -> None:
    """As `promtool test rules` then finds, or not."""
    cases = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    for fires in (True, False):
        covered = {case["alertname"] for case in cases if bool(case["exp_alerts"]) is fires}
        assert covered == {rule["alert"] for rule in ALERTS}


@pytest.fixture(scope="module")
def promtool() -> str:
    """Prometheus's own checker; no package of Python's brings it."""
    found = os.environ.get("LORAMEM_TEST_PROMTOOL") or shutil.which("promtool")
    if found is None:
        pytest.skip("there is no promtool, in the PATH or by LORAMEM_TEST_PROMTOOL")
    return found


@pytest.mark.parametrize("command", [("check", "rules", RULES.name), ("test", "rules", TESTS.name)], ids=" ".join)
def test_promtool_finds_nothing_wrong(promtool: str, command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [promtool, *command], cwd=RULES.parent, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
