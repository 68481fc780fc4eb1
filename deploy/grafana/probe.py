"""Ask a running Prometheus for every expression of every panel, and say which give no data.

    python -m deploy.grafana.probe --prometheus http://127.0.0.1:9090 [--json] [--window 5m] [--span 1h]
                                   [--allow-empty "stores/Days to full" ...]

An expression has data when at least one of its series has a value that is a number: NaN, as of a quantile of nothing,
is no data. Exit status 1 when an expression has none and its panel may not be empty; 2 when Prometheus does not answer
or refuses an expression.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from deploy.grafana.expressions import WINDOW, Expression, expressions

TIMEOUT_S = 30.0
MAY_BE_EMPTY = {
    "training/GPU memory": "there is no GPU",
    "stores/Days to full": "the disk is not filling",
    "training/Time of a training step": "nothing was trained in the window",
    "training/Exam recall": "no adapter was examined in the last hour",
    "training/Wait before a worker claims": "no job was claimed in the last hour",
    "training/Job duration": "no job succeeded in the last hour",
    "training/Succeeded": "no job ended in the time shown",
    "adapters/Selections by winner": "no question was asked of several adapters",
    "adapters/Selections that overruled the router": "no question was asked of several adapters in the window",
    "adapters/Route margin": "no question had two adapters to choose from in the window",
    "adapters/Merge duration": "every adapter was in the engine already in the window",
}
"""Panels that rightly have no data, and when. Each must be allowed by name, by whoever knows that it is so."""
RIGHTLY_EMPTY = tuple(
    f"{name}/Starts (annotation)" for name in ("adapters", "overview", "queries", "stores", "training")
)
"""Nothing was started anew just now."""


@dataclass(frozen=True)
class Finding:
    panel: str
    legend: str
    expression: str
    series: int
    """How many series have a number."""
    allowed: str
    """Why it may be empty; "" where it may not."""

    @property
    def ok(self) -> bool:
        return self.series > 0 or bool(self.allowed)


class PrometheusDoesNotAnswer(Exception):
    """It is away, or takes the expression for none."""


def main(arguments: Sequence[str] | None = None, transport: httpx.BaseTransport | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        with httpx.Client(base_url=options.prometheus, timeout=TIMEOUT_S, transport=transport) as client:
            findings = probe(client, options.allow_empty, options.window, options.span)
    except PrometheusDoesNotAnswer as error:
        print(error, file=sys.stderr)
        return 2
    missing = [finding for finding in findings if not finding.ok]
    if options.json:
        print(
            json.dumps({"expressions": len(findings), "findings": [asdict(one) | {"ok": one.ok} for one in findings]})
        )
    else:
        for finding in findings:
            if not finding.series:
                print(f"{finding.allowed or 'NO DATA'}: {finding.panel} [{finding.legend}]: {finding.expression}")
        print(f"{sum(one.series > 0 for one in findings)} of {len(findings)} expressions have data")
    return 1 if missing else 0


def probe(client: httpx.Client, allowed: Sequence[str], window: str = WINDOW, span: str = "1h") -> list[Finding]:
    """One finding for each expression. Raises `PrometheusDoesNotAnswer`."""
    reasons = {name: MAY_BE_EMPTY[name] for name in allowed}
    reasons |= dict.fromkeys(RIGHTLY_EMPTY, "nothing was started anew just now")
    return [_find(client, each, each.filled(window, span), reasons.get(each.name, "")) for each in expressions()]


def _find(client: httpx.Client, expression: Expression, text: str, allowed: str) -> Finding:
    try:
        reply = client.get("/api/v1/query", params={"query": text})
        answer: dict[str, Any] = reply.json()
    except (httpx.HTTPError, ValueError) as error:
        raise PrometheusDoesNotAnswer(f"{client.base_url} does not answer as Prometheus does: {error}") from error
    if answer.get("status") != "success":
        raise PrometheusDoesNotAnswer(f"{expression.name}: {text}: {answer.get('error', reply.status_code)}")
    series = sum(not math.isnan(float(one["value"][1])) for one in answer["data"]["result"])
    return Finding(expression.name, expression.legend, text, series, allowed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana.probe", description=__doc__.split("\n")[0])
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="address of Prometheus")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--window", default=WINDOW, help="what rates are made of, such as 5m")
    parser.add_argument("--span", default="1h", help="the time that a dashboard would show")
    parser.add_argument(
        "--allow-empty", action="append", default=[], choices=sorted(MAY_BE_EMPTY), metavar="DASHBOARD/PANEL",
        help="a panel that rightly has no data; one of: " + "; ".join(sorted(MAY_BE_EMPTY)),
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
