"""Whether a server stays as it is while it is used: requests by name, and what its processes hold over time.

    python -m benchmarks.soak --json [--smoke] [--url http://127.0.0.1:8000] [--minutes 30] [--users 4] [--pid PID ...]
                              [--interval 10] [--out FILE] [--seed 0]

Locust runs `benchmarks/locustfile.py` in a process of its own: documents are uploaded, learnt for a second, asked in
every mode and deleted, in a fresh namespace that is empty afterwards. `--pid` is that of `loramem serve` on this
machine, or of several programs; memory, open files and threads of each and of all its children are read every
`--interval` seconds. What counts as flat, and how many questions are to be answered, is said in
`benchmarks/soak_figures.py`. The server's key-value cache and its pool of adapters grow until they are full; beyond the
first half of the run that looks like a leak. So start the server with small ones, for half an hour:

    LORAMEM_KV_CACHE_BYTES=268435456 LORAMEM_SOURCE_POOL_BYTES=134217728 loramem serve

The report's settings have both as the server was given them, if there is a `--pid`. `--smoke` takes 20 seconds and
checks that nothing failed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks.circumstances import circumstances, served_model
from benchmarks.option_types import above_zero
from benchmarks.soak_figures import (
    FEWEST,
    process_checks,
    process_figures,
    question_checks,
    request_checks,
    request_figures,
    smoke_question_checks,
)
from benchmarks.soak_processes import Watch, environment_of, tree
from loramem.client import Client, ClientError
from loramem.settings import Settings, variable

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
LOCUSTFILE = Path(__file__).with_name("locustfile.py")
STOP_S = 60
"""For users to finish what they do and delete what they have."""
LIMIT_S = STOP_S + 60
"""Beyond the run's own time; a Locust that still runs is killed."""
LOG_CHARS = 4000
SMOKE_S = 20.0
SMOKE_INTERVAL_S = 2.0
SMOKE_USERS = 2
SETTINGS = ("minutes", "users", "interval", "smoke")
SERVER_SETTINGS = ("kv_cache_bytes", "source_pool_bytes")
"""Memory that the server fills as it is used."""


class LocustFailed(SystemExit):
    """It did not start, or did not end by itself; holds the end of what it said."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a check fails."""
    options = _options(arguments)
    model = served_model(options.url, options.api_key)
    watch = Watch(options.pid)
    given = server_settings(options.pid)
    namespace = f"soak-{uuid4().hex[:8]}"
    try:
        result = drive(options, namespace, watch)
    finally:
        _forget(options, namespace)
    report = report_of(options, result, watch, given) | {"model": model}
    report |= circumstances(_command(options), options.seed)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report) if options.json else _table(report))
    return 0 if all(one["ok"] for one in report["checks"]) else 1


def drive(options: argparse.Namespace, namespace: str, watch: Watch) -> Json:
    """Run Locust to its end, and look at the processes meanwhile. Raises `LocustFailed`."""
    with tempfile.TemporaryDirectory(prefix="loramem-soak-") as folder:
        log, result = Path(folder) / "locust.log", Path(folder) / "result.json"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command_of(options, namespace, result),
                cwd=ROOT,
                env=_environment(options.api_key),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            _watch_until_end(process, watch, options.interval, time.monotonic() + options.minutes * 60 + LIMIT_S)
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0 or not result.is_file():
            said = log.read_text(errors="replace")[-LOG_CHARS:]
            raise LocustFailed(f"benchmarks.soak: locust ended with exit status {process.returncode}:\n{said}")
        found: Json = json.loads(result.read_text(encoding="utf-8"))
        return found


def _watch_until_end(process: "subprocess.Popen[bytes]", watch: Watch, interval_s: float, deadline: float) -> None:
    while time.monotonic() < deadline:
        if watch.roots:
            watch.look()
        try:
            process.wait(interval_s)
        except subprocess.TimeoutExpired:
            continue
        return


def command_of(options: argparse.Namespace, namespace: str, result: Path) -> list[str]:
    """Requests that fail are in the result, so that they make no exit status."""
    seconds = max(1, round(options.minutes * 60))
    return [
        *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"),
        *("--host", options.url, "--users", str(options.users), "--spawn-rate", str(options.users)),
        *("--run-time", f"{seconds}s", "--stop-timeout", str(STOP_S), "--exit-code-on-error", "0"),
        *("--namespace", namespace, "--seed", str(options.seed), "--result", str(result)),
    ]


def _environment(api_key: str | None) -> Mapping[str, str]:
    return os.environ | ({"LORAMEM_API_KEY": api_key} if api_key else {})


def _forget(options: argparse.Namespace, namespace: str) -> None:
    """What users did not come to delete."""
    try:
        with Client(options.url, api_key=options.api_key, namespace=namespace) as client:
            for document in list(client.documents()):
                client.delete(document["id"])
    except ClientError as error:  # a server that is gone has failed requests already, which the report says
        print(f"documents may be left in namespace {namespace}: {error}", file=sys.stderr)


def server_settings(pids: Sequence[int]) -> dict[str, int]:
    """By variable: that of the first program which was given it, else the default. Empty without a program."""
    given = {name.upper(): value for pid in reversed(pids) for name, value in environment_of(pid).items()}
    defaults = {variable(name): Settings.model_fields[name].default for name in SERVER_SETTINGS}
    return {name: int(given.get(name, default)) for name, default in defaults.items()} if pids else {}


def report_of(options: argparse.Namespace, result: Json, watch: Watch, given: Mapping[str, int]) -> Json:
    """`given` is what `server_settings` found before the run."""
    found = request_figures(result)
    checks = request_checks(found) + (smoke_question_checks(found) if options.smoke else question_checks(found))
    processes: Json = {"processes": None, "processes_reason": "no --pid was given"}
    if watch.roots:
        processes = {"processes": process_figures(watch)}
        checks += [] if options.smoke else process_checks(processes["processes"])
    settings = {"settings": {name: getattr(options, name) for name in SETTINGS} | dict(given)}
    return settings | found | processes | {"checks": checks}


def _table(report: Json) -> str:
    lines = [f"{'request':<44}{'count':>7}{'failed':>8}{'p50':>9}{'p99':>9}  ms"]
    for name, one in report["requests"].items():
        lines.append(f"{name:<44}{one['count']:>7}{one['failures']:>8}{one['p50_ms']:>9.0f}{one['p99_ms']:>9.0f}")
    lines += [f"  {one['count']} x {one['name']}: {one['error']}" for one in report["failures"]]
    for process, quantities in (report["processes"] or {}).get("by_process", {}).items():
        lines.append(f"{process}: {', '.join(_course(name, one) for name, one in quantities.items())}")
    lines += [f"failed: {one['name']} {one['value']} ({one['bound']})" for one in report["checks"] if not one["ok"]]
    return "\n".join(lines)


def _course(name: str, one: Json) -> str:
    slope = "" if one["slope_per_hour"] is None else f" ({one['slope_per_hour']:+g} an hour)"
    return f"{name} {one['first']:g} to {one['last']:g}{slope}"


def _command(options: argparse.Namespace) -> str:
    """What repeats the run; no address, no key, no process number."""
    pid = " --pid PID" if options.pid else ""
    what = "--smoke" if options.smoke else f"--minutes {options.minutes:g} --interval {options.interval:g}"
    return f"python -m benchmarks.soak --json {what} --users {options.users}{pid} --seed {options.seed}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.smoke:
        options.minutes, options.interval, options.users = SMOKE_S / 60, SMOKE_INTERVAL_S, SMOKE_USERS
    if missing := [pid for pid in options.pid if not tree([pid])]:
        parser.error(f"--pid {missing[0]}: no such process on this machine")
    if options.pid and options.minutes * 60 / options.interval < FEWEST:
        parser.error(
            f"--minutes {options.minutes:g} gives fewer than {FEWEST} samples at --interval {options.interval:g}"
        )
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description=__doc__.splitlines()[0] if __doc__ else "")
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000")
    add("--api-key", default=os.environ.get("LORAMEM_API_KEY"))
    add("--minutes", type=above_zero, default=30.0)
    add("--users", type=int, choices=range(1, 257), default=4, metavar="N", help="1 to 256")
    add("--pid", type=int, nargs="+", default=[], help="of `loramem serve`, or of gateway and worker")
    add(
        "--interval",
        type=above_zero,
        default=10.0,
        metavar="SECONDS",
        help="between two samples of the processes",
    )
    add("--seed", type=int, default=0, help="of the documents and of what is asked")
    add("--out", type=Path, metavar="FILE", help="the result as JSON")
    add("--smoke", action="store_true", help="20 seconds, two users; checks that nothing failed")
    add("--json", action="store_true", help="one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
