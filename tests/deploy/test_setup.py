"""setup.sh over a stand-in Python that notes what it is asked to install: which steps, in which order, and when none.

`make test` itself is the test that the real thing installs what it should.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.rules import ROOT

TOOLS = ("awk", "bash", "cat", "cut", "dirname", "env", "flock", "grep", "mkdir", "cp", "rm", "sha256sum", "sleep")

PYTHON = """#!/usr/bin/env bash
case "$*" in
  "-c import sys"*) echo ${VERSION:-3.11}; version=${VERSION:-3.11}; (( ${version#3.} >= ${!#} )); exit ;;
  "-c import ensurepip"*) exit ${NO_VENV:-0} ;;
  --version) echo Python ${VERSION:-3.11}.7 ;;
  "-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "-m pip --version") ;;
  "-m pip install"*)
    asked=$*
    echo "${asked#*--no-deps }" >>installed
    while [[ -n ${UNTIL:-} && ! -e $UNTIL ]]; do sleep 0.02; done
    if [[ -n ${ELSEWHERE:-} && $asked == *torch==* && $asked != *--index-url* ]]; then
      echo "No matching distribution" >&2
      exit 1
    fi
    if [[ -n ${BROKEN:-} && $asked == *$BROKEN* ]]; then
      echo "broken $BROKEN" >&2
      exit 1
    fi ;;
  *) echo "unexpected: $*" >&2; exit 99 ;;
esac
"""


class Machine:
    """A checkout and a PATH of its own."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self._bin = folder / "checkout", folder / "bin"
        for name in (
            "deploy/setup.sh",
            "pyproject.toml",
            "requirements/cpu.txt",
            "requirements/gpu.txt",
            "requirements/dev.txt",
        ):
            target = self.checkout / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
        self._bin.mkdir()
        for tool in TOOLS:
            (self._bin / tool).symlink_to(str(shutil.which(tool)))

    def add_python(self, name: str = "python3.11") -> None:
        file = self._bin / name
        file.write_text(PYTHON)
        file.chmod(0o755)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = [str(self.checkout / "deploy" / "setup.sh"), *arguments]
        environment = {"PATH": str(self._bin), **environment}
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def setup(self, *arguments: str, **environment: str) -> tuple[int, str]:
        process = self.start(*arguments, **environment)
        _, said = process.communicate(timeout=60)
        return process.returncode, said

    def installed(self) -> list[str]:
        file = self.checkout / "installed"
        return file.read_text().splitlines() if file.exists() else []


CPU = ["torch==2.13.0+cpu", "-r requirements/cpu.txt", "--no-build-isolation --editable ."]
INDEX = "--index-url https://" + "download.py" + "torch.org/whl/cpu"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_torch_then_the_lock_then_ourselves_each_with_its_time(machine: Machine) -> None:
    machine.add_python()
    code, said = machine.setup()
    assert code == 0, said
    assert machine.installed() == CPU
    assert "setup: making .venv with Python 3.11.7: done in " in said
    assert "locked packages (requirements/cpu.txt): done in " in said
    assert "setup: ready after " in said


def test_a_second_run_does_and_says_nothing(machine: Machine) -> None:
    machine.add_python()
    machine.setup()
    assert machine.setup() == (0, "")
    assert machine.installed() == CPU


def test_the_development_tools_come_only_when_asked_for(machine: Machine) -> None:
    machine.add_python()
    machine.setup()
    assert machine.setup("dev")[0] == 0
    assert machine.installed() == [*CPU, "-r requirements/dev.txt"]
    assert machine.setup("dev") == (0, "")
    assert machine.setup() == (0, "")


def test_a_changed_lock_is_installed(machine: Machine) -> None:
    machine.add_python()
    machine.setup()
    with (machine.checkout / "requirements" / "cpu.txt").open("a") as lock:
        lock.write("one-more==1.0\n")
    assert machine.setup()[0] == 0
    assert machine.installed() == CPU * 2


def test_a_run_that_failed_is_made_good_by_the_next(machine: Machine) -> None:
    machine.add_python()
    code, said = machine.setup(BROKEN="requirements/cpu.txt")
    assert code != 0
    assert "broken requirements/cpu.txt" in said
    assert "ready" not in said
    assert machine.setup()[0] == 0
    assert machine.installed() == [*CPU[:2], *CPU]


def test_torch_comes_from_its_own_index_when_pip_does_not_find_it(machine: Machine) -> None:
    machine.add_python()
    code, said = machine.setup(ELSEWHERE="yes")
    assert code == 0, said
    assert machine.installed() == [CPU[0], f"{INDEX} {CPU[0]}", *CPU[1:]]
    assert "torch==2.13.0+cpu is not where pip is set to look" in said
    assert "No matching distribution" not in said


def test_torch_found_nowhere_shows_both_failures(machine: Machine) -> None:
    machine.add_python()
    code, said = machine.setup(ELSEWHERE="yes", BROKEN="torch")
    assert code == 1
    assert "No matching distribution" in said
    assert "broken torch" in said
    assert "cannot install torch==2.13.0+cpu" in said


def test_the_gpu_profile_has_its_own_lock_and_a_new_environment(machine: Machine) -> None:
    machine.add_python()
    machine.setup()
    machine.add_python("python3.12")
    code, said = machine.setup(LORAMEM_PROFILE="gpu", VERSION="3.12")
    assert code == 0, said
    assert "making a new one" in said
    assert machine.installed() == [*CPU, "-r requirements/gpu.txt", CPU[2]]


@pytest.mark.parametrize("named", [{}, {"PYTHON": "python3.11"}])
def test_the_gpu_profile_needs_the_python_of_its_lock(machine: Machine, named: dict[str, str]) -> None:
    for name in ("python3.11", "python3"):
        machine.add_python(name)
    code, said = machine.setup(LORAMEM_PROFILE="gpu", **named)
    assert code == 1
    assert f"no Python 3.12 or newer among: {named.get('PYTHON', 'python3.12 python3.13 python3')}. " in said
    assert machine.installed() == []


def test_no_python_is_explained(machine: Machine) -> None:
    code, said = machine.setup()
    assert code == 1
    assert "no Python 3.11 or newer among: python3.11 python3.12 python3.13 python3" in said


def test_a_python_too_old_is_passed_over(machine: Machine) -> None:
    machine.add_python("python3")
    code, said = machine.setup(VERSION="3.10")
    assert code == 1
    assert "no Python 3.11 or newer" in said


def test_a_missing_venv_module_names_the_package(machine: Machine) -> None:
    machine.add_python()
    code, said = machine.setup(NO_VENV="1")
    assert code == 1
    assert "apt-get install python3.11-venv" in said


@pytest.mark.parametrize(("arguments", "profile"), [(["prod"], "cpu"), ([], "tpu")])
def test_a_wrong_call_is_refused(machine: Machine, arguments: list[str], profile: str) -> None:
    machine.add_python()
    code, said = machine.setup(*arguments, LORAMEM_PROFILE=profile)
    assert code == 1
    assert "allowed" in said
    assert not (machine.checkout / ".venv").exists()


def test_runs_at_the_same_time_install_once(machine: Machine) -> None:
    machine.add_python()
    release = machine.checkout / "release"
    processes = [machine.start(UNTIL=str(release))]
    try:
        assert "making .venv" in next_line(processes[0])
        processes += [machine.start() for _ in range(2)]
        assert all("waiting for it" in next_line(process) for process in processes[1:])
    finally:
        release.touch()
        for process in processes:
            process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert machine.installed() == CPU


def next_line(process: subprocess.Popen[str]) -> str:
    """What it says to people next; waited for."""
    assert process.stderr is not None
    return process.stderr.readline()


def test_a_moved_checkout_is_set_up_again(machine: Machine) -> None:
    machine.add_python()
    machine.setup()
    moved = machine.checkout.with_name("moved")
    os.rename(machine.checkout, moved)
    machine.checkout = moved
    machine.setup()
    assert machine.installed() == CPU * 2
