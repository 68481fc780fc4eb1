"""Whether every benchmark still runs: all small runs one after another, and the report made anew.

    python -m benchmarks.smoke [--json] [--only NAME,...] [--url http://127.0.0.1:8000]

Each is a process of its own, `python -m benchmarks.NAME --json --smoke`, `report` writes into a temporary folder. Those
that ask a server get one that is started for them on a free port, with a home of its own that is deleted afterwards,
or the server at `--url` (its key: LORAMEM_API_KEY). Model, embedder and all else are set by LORAMEM_* as for a server.
For those that ask documents which are learnt already, two are learnt for seconds into a namespace of its own.

A run is `ok` when its exit status is 0, its report has checks and none of them failed, and every figure in it is a
number. It is `skipped` when it says itself that its data or an optional package is missing; a part that it left out for
such a reason is named beside `ok`. Data is looked for in LORAMEM_BENCH_DATA, else `shared/data` beside the repository.
Neither speed nor quality is promised.

Each is to take at most a minute on two cores. Those that took longer are named with their seconds, in the report as
`over_a_minute`, which fails nothing: only the sum is checked. `q15` is known to, as it starts several servers.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import httpx

from benchmarks.circumstances import check, circumstances
from benchmarks.passages import DATA
from loramem.client import Client, ClientError

Environment = Mapping[str, str]
Json = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
SERVE = (str(Path(sys.executable).parent / "loramem"), "serve", "--stop-with-parent")
LIMIT_S = 900.0
"""Of all together; a single one is ended after as long."""
EACH_S = 60.0
"""What each is to take at most."""
READY_S = 300.0
"""A server that unpacks the embedded model and loads it takes about 60."""
STOP_S = 60.0
DRAW = ("--dataset", "squad", "--documents", "2")
"""Documents that `hybrid` and `lifts` draw in a smoke run, by the same seed."""
SAYS_MISSING = (
    r"no benchmark data found",
    r"holds no sectors of the phone book",
    rf"No such file or directory: '{re.escape(str(DATA.resolve()))}",
    r"No module named '(matplotlib|trl|datasets)",
)
"""In the last line of a run that failed for want of data or of an optional package."""


@dataclass(frozen=True)
class Benchmark:
    """`server`: asks a running server. `learnt`: documents that were learnt before, in a namespace that is named.
    `slow`: why it is known to take longer than `EACH_S`.
    """

    name: str
    server: bool = False
    learnt: bool = False
    slow: str = ""


REPORT = Benchmark("report")
BENCHMARKS = (
    Benchmark("merge"),
    Benchmark("vector_scale"),
    Benchmark("routing"),
    Benchmark("train"),
    Benchmark("capacity"),
    Benchmark("q15", slow="starts several servers"),
    Benchmark("overhead", server=True),
    Benchmark("load", server=True),
    Benchmark("soak", server=True),
    Benchmark("recall", server=True),
    Benchmark("selecting", server=True),
    Benchmark("speculation", server=True),
    Benchmark("squad", server=True),
    Benchmark("recipes", server=True),
    Benchmark("harm", server=True),
    Benchmark("sheets", server=True),
    Benchmark("hybrid", server=True, learnt=True),
    Benchmark("lifts", server=True, learnt=True),
    REPORT,
)
"""All that there are, in the order in which they run: first those that want the machine for themselves."""


@dataclass(frozen=True)
class Outcome:
    """`reason`: what failed, or why it was skipped. `without`: parts that were left out, each with the reason."""

    name: str
    seconds: float
    state: Literal["ok", "failed", "skipped"]
    reason: str = ""
    without: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        said = [self.reason, *(f"without {part}" for part in self.without)]
        return f"{self.name:<14}{self.seconds:>7.1f} s  {'; '.join([self.state, *filter(None, said)])}"


class NoServer(Exception):
    """The server did not start, ended, or was not ready in time; holds the end of its log."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a benchmark failed, none ran, or all together took too long."""
    options = _options(arguments)
    started, outcomes = time.monotonic(), list[Outcome]()
    with (
        tempfile.TemporaryDirectory(prefix="loramem-smoke-", ignore_cleanup_errors=True) as folder,
        closing(run_all(options.only, Path(folder), options.url)) as running,
    ):
        for outcome in running:
            outcomes.append(outcome)
            print(outcome.line, flush=True)
    seconds = time.monotonic() - started
    checks, slow = checks_of(outcomes, seconds), over_a_minute(outcomes)
    if options.json:
        report = {"benchmarks": [asdict(one) for one in outcomes], "seconds": round(seconds, 1)}
        report |= {"over_a_minute": slow, "checks": checks}
        print(json.dumps(report | circumstances(_command(options.only), 0)))
    else:
        for one in slow:
            print(f"{one['name']:<14}{one['seconds']:>7.1f} s  over {EACH_S:g} s{one['known'] and ': ' + one['known']}")
        print(f"{'all':<14}{seconds:>7.1f} s  {sum(one.state == 'ok' for one in outcomes)} of {len(outcomes)} ok")
    return 0 if all(one["ok"] for one in checks) else 1


def run_all(chosen: Sequence[Benchmark], folder: Path, url: str | None) -> Generator[Outcome]:
    """Those that need no server, those that do, and the report."""
    environment = environment_of(folder / "home")
    yield from (run(one, command_of(one), environment) for one in chosen if not one.server and one is not REPORT)
    if asking := [one for one in chosen if one.server]:
        try:
            with server_at(url, folder / "home", environment) as address:
                yield from run_asking(asking, address, environment)
        except NoServer as error:
            print(error, file=sys.stderr)
            yield from (Outcome(one.name, 0.0, "failed", "the server did not start") for one in asking)
    if REPORT in chosen:
        yield run_report(folder / "report", environment)


def run_asking(chosen: Sequence[Benchmark], url: str, environment: Environment) -> Iterator[Outcome]:
    yield from (run(one, command_of(one, "--url", url), environment) for one in chosen if not one.learnt)
    if wanting := [one for one in chosen if one.learnt]:
        namespace = f"smoke-{uuid4().hex[:8]}"
        place = ("--url", url, "--namespace", namespace)
        brief = ("--max-seconds", "1", "--formats", "original")
        learning = ("--methods", "base", "--questions-per-document", "1", *brief, "--keep")
        try:
            learnt = run(Benchmark("recall"), (*_module("recall"), "--json", *place, *DRAW, *learning), environment)
            if learnt.state == "ok":
                yield from (run(one, command_of(one, *place, *DRAW), environment) for one in wanting)
            else:
                reason = f"learning documents for it: {learnt.reason}"
                yield from (Outcome(one.name, learnt.seconds, learnt.state, reason) for one in wanting)
        finally:
            _forget(url, namespace)


def run_report(folder: Path, environment: Environment) -> Outcome:
    folder.mkdir()
    file = folder / "REPORT.md"
    outcome = run(REPORT, (*_module(REPORT.name), "--out", str(file)), environment)
    if outcome.state == "ok" and not (file.is_file() and file.stat().st_size):
        return Outcome(REPORT.name, outcome.seconds, "failed", "it wrote nothing")
    return outcome


def run(one: Benchmark, command: Sequence[str], environment: Environment) -> Outcome:
    """One process to its end. What it says on its standard error is shown when it failed."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome(one.name, round(time.monotonic() - started, 1), "failed", f"not ended after {LIMIT_S:g} s")
    outcome = judged(one, round(time.monotonic() - started, 1), done)
    if outcome.state == "failed":
        print(f"-- {one.name}\n{done.stderr[-4000:]}", file=sys.stderr)
    return outcome


def judged(one: Benchmark, seconds: float, done: "subprocess.CompletedProcess[str]") -> Outcome:
    report, said = _last_object(done.stdout), _last_line(done.stderr)
    if report is None and done.returncode and any(re.search(pattern, said) for pattern in SAYS_MISSING):
        return Outcome(one.name, seconds, "skipped", said)
    checks = (report or {}).get("checks", ())
    if failed := [f"{each['name']}: {each['value']} ({each['bound']})" for each in checks if not each["ok"]]:
        return Outcome(one.name, seconds, "failed", "; ".join(failed))
    if done.returncode:
        return Outcome(one.name, seconds, "failed", f"exit status {done.returncode}: {said}")
    if report is None and one is not REPORT:
        return Outcome(one.name, seconds, "failed", "its last line is no JSON object of numbers and texts")
    if not checks and one is not REPORT:
        return Outcome(one.name, seconds, "failed", "it checks nothing")
    return Outcome(one.name, seconds, "ok", without=_left_out(report or {}))


def checks_of(outcomes: Sequence[Outcome], seconds: float) -> list[Json]:
    """What was skipped is no failure, but a run in which everything was has shown nothing."""
    ran = [one for one in outcomes if one.state != "skipped"]
    return [
        *(check(f"{one.name}: ok", float(one.state == "ok"), ">= 1", one.state == "ok") for one in ran),
        check("benchmarks that ran", len(ran), ">= 1", len(ran) >= 1),
        check("seconds, all together", round(seconds, 1), f"<= {LIMIT_S:g}", seconds <= LIMIT_S),
    ]


def over_a_minute(outcomes: Sequence[Outcome]) -> list[Json]:
    """`known`: the reason, where it is known beforehand that a benchmark takes so long."""
    known = {one.name: one.slow for one in BENCHMARKS}
    return [
        {"name": one.name, "seconds": one.seconds, "known": known.get(one.name, "")}
        for one in outcomes
        if one.seconds > EACH_S
    ]


def command_of(one: Benchmark, *options: str) -> tuple[str, ...]:
    return (*_module(one.name), "--json", "--smoke", *options)


def environment_of(home: Path) -> Environment:
    """Ours, but for what would lead a server of our own to the data of another, or close it to those who ask it."""
    own = {
        "LORAMEM_HOME": str(home),
        "LORAMEM_HOST": "127.0.0.1",
        "LORAMEM_DATABASE_URL": "",
        "LORAMEM_REDIS_URL": "",
        "LORAMEM_API_KEYS": "[]",
        "LORAMEM_BENCH_DATA": str(DATA.resolve()),
    }
    return os.environ | own


@contextmanager
def server_at(url: str | None, home: Path, environment: Environment) -> Iterator[str]:
    """The address of the server at `url`, or of one of our own, which ends with the block. Raises `NoServer`."""
    if url is not None:
        yield url
        return
    home.mkdir(parents=True, exist_ok=True)
    port, log = _free_port(), home / "server.log"
    process = _start({**environment, "LORAMEM_PORT": str(port)}, log)
    try:
        address = f"http://127.0.0.1:{port}"
        _await_ready(process, address, log)
        yield address
        if process.poll() is not None:
            print(f"the server ended by itself:\n{_end_of(log)}", file=sys.stderr)
    finally:
        _stop(process)


def _start(environment: Environment, log: Path) -> "subprocess.Popen[bytes]":
    try:
        with log.open("wb") as output:
            return subprocess.Popen(
                SERVE, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
    except OSError as error:
        raise NoServer(f"the server cannot be started: {error}") from error


def _await_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while not _is_ready(url):
        if process.poll() is not None:
            raise NoServer(f"the server ended with exit status {process.returncode}:\n{_end_of(log)}")
        if time.monotonic() > deadline:
            raise NoServer(f"the server was not ready after {READY_S:g} s:\n{_end_of(log)}")
        time.sleep(0.2)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False  # not listening yet


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _forget(url: str, namespace: str) -> None:
    """Delete what was learnt; a server that is gone by now is reported by those who asked it."""
    try:
        with Client(url, api_key=os.environ.get("LORAMEM_API_KEY"), namespace=namespace) as client:
            for document in list(client.documents()):
                client.delete(document["id"])
    except ClientError as error:
        print(f"documents may be left in namespace {namespace}: {error}", file=sys.stderr)


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"benchmarks.{name}")


def _last_object(output: str) -> Json | None:
    try:
        found = json.loads(_last_line(output), parse_constant=_not_a_number)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _not_a_number(name: str) -> None:
    raise ValueError(f"{name} is no figure")


def _last_line(output: str) -> str:
    return next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "")


def _left_out(report: Json) -> tuple[str, ...]:
    """Parts that are null, with a reason: a benchmark's way to say that it went on without."""
    named = {key.removesuffix("_reason"): value for key, value in report.items() if key.endswith("_reason")}
    return tuple(f"{name}: {reason}" for name, reason in named.items() if report.get(name, 0) is None)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _command(chosen: Sequence[Benchmark]) -> str:
    only = "" if tuple(chosen) == BENCHMARKS else f" --only {','.join(one.name for one in chosen)}"
    return f"python -m benchmarks.smoke --json{only}"


def _chosen(names: str) -> tuple[Benchmark, ...]:
    """In the order in which they run. Raises `ArgumentTypeError` for a name that is none."""
    wanted = names.split(",")
    known = [one.name for one in BENCHMARKS]
    if unknown := [name for name in wanted if name not in known]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)!r}: there are {', '.join(known)}")
    return tuple(one for one in BENCHMARKS if one.name in wanted)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.smoke", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", type=_chosen, default=BENCHMARKS, metavar="NAME,...", help="some of them")
    parser.add_argument("--url", help="a running server; default: one is started for the run")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
