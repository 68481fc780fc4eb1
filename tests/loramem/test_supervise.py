"""The supervisor runs as a process of its own, over tiny programs: it takes signals and reaps every child it has."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loramem.errors import SettingsError
from loramem.supervise import Program, Timing, check_address, check_home
from tests.backends import free_port
from tests.loramem.echo import echo, set_proxy

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="subreaper and parent death signal are Linux's")

SCRIPT = """
import sys
from loramem import logs
from loramem.supervise import Program, Supervisor, Timing
logs.configure("supervisor", "info")
timing = Timing(first_delay_s=0.05, longest_delay_s=0.2, healthy_after_s=30, grace_s=float(sys.argv[1]), poll_s=0.02)
programs = [Program(name, name, timing) for name in sys.argv[3:]]
sys.exit(Supervisor(programs, timing, sys.argv[2], "welcome").run())
"""

NOTE_PID = "import os, pathlib; pathlib.Path({name!r}).open('a').write(f'{{os.getpid()}}\\n')\n"
STAY = "import time\nwhile True: time.sleep(0.05)\n"


class Stage:
    """A folder with stand-in programs, each of which notes its process id in a file of its own name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.processes: list[subprocess.Popen[str]] = []

    def program(self, name: str, code: str = STAY) -> str:
        pids = str(self._folder / f"{name}.pids")
        (self._folder / f"{name}.py").write_text(NOTE_PID.format(name=pids) + code)
        return name

    def supervise(self, *programs: str, grace_s: float = 5, ready_url: str = "") -> subprocess.Popen[str]:
        path = os.pathsep.join([str(self._folder), os.getcwd()])
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(grace_s), ready_url, *programs],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def pids(self, name: str) -> list[int]:
        file = self._folder / f"{name}.pids"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def wait_for_starts(self, name: str, count: int = 1) -> list[int]:
        until(lambda: len(self.pids(name)) >= count)
        return self.pids(name)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    for process in stage.processes:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_killed_program_is_started_again_and_the_other_is_left_alone(stage: Stage) -> None:
    stage.supervise(stage.program("gateway"), stage.program("worker"))
    worker = stage.wait_for_starts("worker")[0]
    os.kill(stage.wait_for_starts("gateway")[0], signal.SIGKILL)
    assert alive(stage.wait_for_starts("gateway", 2)[1])
    assert alive(worker)
    assert stage.pids("worker") == [worker]


def test_sigterm_stops_the_programs_and_exits_with_zero(stage: Stage) -> None:
    supervisor = stage.supervise(stage.program("gateway"), stage.program("worker"))
    pids = stage.wait_for_starts("gateway") + stage.wait_for_starts("worker")
    supervisor.terminate()
    assert supervisor.wait(60) == 0
    assert not any(alive(pid) for pid in pids)


def test_a_program_that_finishes_its_work_on_sigterm_is_waited_for(stage: Stage, tmp_path: Path) -> None:
    finished = tmp_path / "finished"
    code = (
        "import signal, time, sys, pathlib\n"
        f"def stop(*_): time.sleep(0.3); pathlib.Path({str(finished)!r}).touch(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"pathlib.Path({str(tmp_path / 'armed')!r}).touch()\n"
    )
    supervisor = stage.supervise(stage.program("gateway", code + STAY))
    until((tmp_path / "armed").exists)
    supervisor.send_signal(signal.SIGINT)
    assert supervisor.wait(60) == 0
    assert finished.exists()


def deaf(tmp_path: Path) -> str:
    touch = f"import pathlib; pathlib.Path({str(tmp_path / 'armed')!r}).touch()\n"
    return f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{touch}{STAY}"


def starts_engine(new_session: bool) -> str:
    start = f"subprocess.Popen([sys.executable, '-m', 'engine'], start_new_session={new_session})"
    return f"import subprocess, sys\n{start}\n{STAY}"


def test_a_program_deaf_to_sigterm_is_killed_after_the_grace_period(stage: Stage, tmp_path: Path) -> None:
    supervisor = stage.supervise(stage.program("gateway", deaf(tmp_path)), grace_s=0.3)
    until((tmp_path / "armed").exists)
    supervisor.terminate()
    assert supervisor.wait(60) == 0
    assert not alive(stage.pids("gateway")[0])


def test_a_second_signal_does_not_wait_for_the_grace_period(stage: Stage, tmp_path: Path) -> None:
    supervisor = stage.supervise(stage.program("gateway", deaf(tmp_path)), grace_s=600)
    until((tmp_path / "armed").exists)
    supervisor.terminate()
    assert supervisor.stdout is not None
    assert any("stopping" in line for line in supervisor.stdout)
    supervisor.terminate()
    assert supervisor.wait(60) == 0
    assert not alive(stage.pids("gateway")[0])


def left_behind(supervisor: subprocess.Popen[str], pid: int) -> list[str]:
    """How the supervisor told, until it ended, that it killed this process."""
    assert supervisor.stdout
    lines = supervisor.stdout.read().splitlines()
    supervisor.wait(60)
    return [line.split()[1] for line in lines if f"killed process {pid}, left behind" in line]


@pytest.mark.parametrize("new_session", [False, True], ids=["in its group", "in a session of its own"])
def test_no_engine_outlives_a_killed_gateway(stage: Stage, tmp_path: Path, new_session: bool) -> None:
    stage.program("engine", deaf(tmp_path))
    supervisor = stage.supervise(stage.program("gateway", starts_engine(new_session)))
    first = stage.wait_for_starts("engine")[0]
    until((tmp_path / "armed").exists)
    os.kill(stage.pids("gateway")[0], signal.SIGKILL)
    stage.wait_for_starts("gateway", 2)
    assert not alive(first), "the old engine must be gone before the new gateway starts"
    supervisor.terminate()
    assert left_behind(supervisor, first) == ["WARNING"]


def test_stopping_takes_a_deaf_engine_along(stage: Stage, tmp_path: Path) -> None:
    stage.program("engine", deaf(tmp_path))
    supervisor = stage.supervise(stage.program("gateway", starts_engine(new_session=True)))
    engine = stage.wait_for_starts("engine")[0]
    until((tmp_path / "armed").exists)
    supervisor.terminate()
    assert left_behind(supervisor, engine) == ["INFO"], "a stop asked for it"
    assert supervisor.returncode == 0
    assert not alive(engine)


def test_programs_stop_when_the_supervisor_is_killed(stage: Stage) -> None:
    supervisor = stage.supervise(stage.program("gateway"), stage.program("worker"))
    pids = stage.wait_for_starts("gateway") + stage.wait_for_starts("worker")
    supervisor.kill()
    until(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.parametrize("at_the_end", ["collects", "does not"])
def test_a_program_ends_without_searching_its_memory_for_garbage(at_the_end: str, tmp_path: Path) -> None:
    """vLLM gives an engine five seconds to stop; what it defines takes Python most of that to look through."""
    (tmp_path / "circle.py").write_text(
        "import gc; gc.disable()\n"
        "class Circle:\n    def __init__(self): self.self = self\n    def __del__(self): print('collected')\n"
        "Circle()\n"
    )
    script = "import circle" if at_the_end == "collects" else f"supervise.run_program('circle', {os.getpid()})"
    ended = subprocess.run(
        [sys.executable, "-c", f"from loramem import supervise; {script}"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == ("collected\n" if at_the_end == "collects" else "")


def test_wrong_settings_stop_everything(stage: Stage) -> None:
    refuse = "from loramem.errors import SettingsError\nraise SettingsError('LORAMEM_MODEL=nowhere: no such folder')\n"
    supervisor = stage.supervise(stage.program("gateway"), stage.program("worker", refuse))
    output, _ = supervisor.communicate(timeout=60)
    assert supervisor.returncode == 78
    assert "LORAMEM_MODEL=nowhere: no such folder" in output
    assert not any(alive(pid) for pid in stage.pids("gateway"))
    assert len(stage.pids("worker")) == 1


def test_a_crash_is_told_with_its_exit_status_and_the_delay_grows(stage: Stage) -> None:
    supervisor = stage.supervise(stage.program("worker", "raise SystemExit(3)"))
    stage.wait_for_starts("worker", 4)
    supervisor.terminate()
    output, _ = supervisor.communicate(timeout=60)
    delays = [line.rsplit("again in ")[-1] for line in output.splitlines() if "again in" in line]
    assert "worker ended (exit status 3) after " in output
    assert delays[:3] == ["0.05 s", "0.1 s", "0.2 s"]


def test_readiness_is_announced_once_with_the_seconds_it_took(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    code = (
        "import http.server\n"
        "class Ready(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.send_header('Content-Length', '0'); self.end_headers()\n"
        f"http.server.HTTPServer(('127.0.0.1', {port}), Ready).serve_forever()\n"
    )
    supervisor = stage.supervise(stage.program("gateway", code), ready_url=f"http://127.0.0.1:{port}/readyz")
    assert supervisor.stdout is not None
    line = next(line for line in supervisor.stdout if "is ready" in line)
    assert line.startswith("gateway is ready after ")
    assert line.rstrip().endswith(" s: welcome")
    supervisor.terminate()
    rest, _ = supervisor.communicate(timeout=60)
    assert "is ready" not in rest


def test_a_program_starts_when_what_it_waits_for_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answers(url: str) -> bool:
        asked.append(url)
        return len(asked) > 1

    monkeypatch.setattr("loramem.supervise._answers", answers)
    monkeypatch.setattr("loramem.supervise.PROBE_EVERY_S", 60)
    program = Program("worker", "none", Timing(), "http://gateway/readyz")
    assert not program.is_due()
    assert not program.is_due()  # not asked again so soon
    program.next_start_at -= 60
    assert program.is_due()
    assert asked == ["http://gateway/readyz"] * 2


def test_what_is_waited_for_is_asked_directly_whatever_proxy_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    set_proxy(monkeypatch, f"http://127.0.0.1:{free_port()}")
    with echo() as url:
        assert Program("worker", "none", Timing(), f"{url}/readyz").is_due()


def test_a_long_run_starts_the_delays_afresh() -> None:
    program = Program("worker", "none", Timing(first_delay_s=1, longest_delay_s=4, healthy_after_s=60))

    def delay_after(seconds: float) -> float:
        program.process = subprocess.Popen(["true"])
        program.process.wait()
        program.started_at = time.monotonic() - seconds
        return program.ended(1)

    assert [delay_after(0) for _ in range(4)] == [1, 2, 4, 4]
    assert delay_after(61) == 1


def test_a_taken_port_is_named_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"127\.0\.0\.1:{port} \(Address already in use\).*LORAMEM_PORT"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"192\.0\.2\.1:8000.*LORAMEM_HOST"):
        check_address("192.0.2.1", 8000)


def test_the_data_folder_is_made_or_its_failure_explained(tmp_path: Path) -> None:
    check_home(tmp_path / "new" / "home")
    assert (tmp_path / "new" / "home").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"LORAMEM_HOME=.*/file/home' cannot be made"):
        check_home(tmp_path / "file" / "home")
