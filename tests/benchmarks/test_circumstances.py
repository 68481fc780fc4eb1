import os
import shutil
import subprocess
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks import circumstances as module
from benchmarks.circumstances import HASH_LENGTH, RESULTS, circumstances, command_of, commit_of


def parser() -> ArgumentParser:
    made = ArgumentParser(prog="benchmarks.some")
    for name, default in {"--url": "http://127.0.0.1:8000", "--api-key": None, "--namespace": None}.items():
        made.add_argument(name, default=default)
    made.add_argument("--only", choices=("mill", "roof"))
    made.add_argument("--ranks", type=lambda text: tuple(int(one) for one in text.split(",")))
    made.add_argument("--max-seconds", type=float, default=30.0)
    made.add_argument("--model")
    made.add_argument("--data", type=Path, default=Path("data"))
    made.add_argument("--out", type=Path)
    made.add_argument("--seed", type=int, default=0)
    for flag in ("--smoke", "--json"):
        made.add_argument(flag, action="store_true")
    return made


def said(*arguments: str) -> str:
    return command_of(parser(), parser().parse_args(arguments))


# the command


def test_what_differs_from_its_default_is_said() -> None:
    assert said() == said("--json", "--seed", "0", "--max-seconds", "30") == "python -m benchmarks.some --json"
    assert (
        said("--smoke", "--seed", "1", "--ranks", "1,4")
        == "python -m benchmarks.some --json --ranks 1,4 --seed 1 --smoke"
    )
    assert said("--max-seconds", "20", "--only", "mill").endswith(" --only mill --max-seconds 20")
    assert said("--max-seconds", "0.25").endswith(" --max-seconds 0.25")


def test_a_command_that_was_said_is_the_same_run() -> None:
    given = parser().parse_args(
        ["--ranks", "8", "--max-seconds", "1e-7", "--model", "owner/it's a model", "--seed", "3"]
    )
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {command_of(parser(), given)}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert parser().parse_args(words[3:]) == parser().parse_args([*words[3:], "--json"])
    assert vars(parser().parse_args(words[3:])) == vars(given) | {"json": True}


def test_neither_address_nor_key_nor_a_name_of_ours_is_said(tmp_path: Path) -> None:
    asked = ("--url", "http://inside:8000", "--api-key", "secret", "--out", str(tmp_path / "out.json"))
    assert said(*asked) == "python -m benchmarks.some --json"
    assert said("--namespace", "ours").endswith(" --namespace NAME")
    assert said("--model", str(tmp_path), "--data", str(tmp_path)).endswith(" --model FOLDER --data FOLDER")
    assert said("--data", str(tmp_path / "questions.json")).endswith(" --data FILE")
    assert said("--model", "http://inside:8000/v1").endswith(" --model URL")


# the commit


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    root = tmp_path / "checkout"
    (root / RESULTS).mkdir(parents=True)
    for file in (root / "code.py", root / RESULTS / "some.json"):
        file.write_text("1")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "first")
    return root


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_result_tells_the_commit_and_whether_the_tree_is_another(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git(checkout, "rev-parse", "HEAD")[:HASH_LENGTH]
    monkeypatch.setattr(module, "ROOT", checkout)
    assert circumstances("", 0)["versions"]["commit"] == commit
    (checkout / "code.py").write_text("2")
    assert circumstances("", 0)["versions"]["commit"] == f"{commit}-dirty"


def test_a_new_file_is_a_change_and_a_new_result_is_none(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")[:HASH_LENGTH]
    for name in ("some.json", "other.json"):
        (checkout / RESULTS / name).write_text("2")
    assert commit_of(checkout) == commit
    (checkout / "new.py").write_text("")
    assert commit_of(checkout) == f"{commit}-dirty"


def test_what_is_installed_within_another_checkout_is_not_its_commit(checkout: Path) -> None:
    (checkout / "packages").mkdir()
    assert commit_of(checkout / "packages") is None


def test_a_checkout_without_a_commit_has_none(tmp_path: Path, checkout: Path) -> None:
    git(tmp_path, "init", "--quiet")
    assert commit_of(tmp_path) is None


@pytest.mark.parametrize("script", [None, "exit 128", "exec sleep 60"])
def test_without_git_or_when_it_fails_or_dawdles_the_commit_is_left_out(
    script: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "bin").mkdir()
    if script:
        program = tmp_path / "bin" / "git"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + (os.pathsep + os.environ["PATH"] if script else ""))
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "GIT_S", 0.3)
    versions: dict[str, Any] = circumstances("", 0)["versions"]
    assert "commit" not in versions
    assert "python" in versions
