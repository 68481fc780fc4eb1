"""Every expression that the written dashboards ask for. Needs nothing but the files."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
WINDOW = "5m"
"""Stands for `$__rate_interval`, which Grafana makes of the scrape interval and the width of a panel."""


@dataclass(frozen=True)
class Expression:
    """One query of a panel. `text` may hold template variables."""

    dashboard: str
    panel: str
    text: str
    legend: str

    @property
    def name(self) -> str:
        return f"{self.dashboard}/{self.panel}"

    def filled(self, window: str = WINDOW, span: str = "1h") -> str:
        """PromQL as Prometheus takes it: rates over `window`, the time shown is `span`, every mode."""
        values = {"$__rate_interval": window, "$__range": span, "$mode": ".*"}
        text = self.text
        for variable, value in values.items():
            text = text.replace(variable, value)
        return text


def expressions(folder: Path = FOLDER) -> list[Expression]:
    """Of all dashboards, in the order of their panels; annotations count as panels of their own."""
    return [found for file in sorted(folder.glob("*.json")) for found in _of(file.stem, json.loads(file.read_text()))]


def _of(name: str, model: dict[str, Any]) -> Iterator[Expression]:
    for panel in model["panels"]:
        for target in panel.get("targets", ()):
            yield Expression(name, panel["title"], target["expr"], target["legendFormat"])
    for annotation in model["annotations"]["list"]:
        yield Expression(name, f"{annotation['name']} (annotation)", annotation["expr"], "")
