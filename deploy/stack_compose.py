"""What docker-compose.yml says: the services of one profile.

Read is the part of the Compose format that the file uses; a variable written in another form than `$$`, `${NAME}`,
`${NAME:-default}` or `${NAME:?message}` is an error, not passed over.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?:(?P<form>:[-?])(?P<text>[^}]*))?\}|(?P<unknown>))")
DURATION = re.compile(r"(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m)?(?:(?P<s>\d+)s)?")


class StackError(Exception):
    """What was asked for cannot be started; the message says why and the way out."""


@dataclass(frozen=True)
class Mount:
    """`source` is the name of a volume, or a path that begins with a dot, relative to the file's folder."""

    source: str
    target: str

    @property
    def is_bind(self) -> bool:
        return self.source.startswith(".")


@dataclass(frozen=True)
class Service:
    """`hosts` are its names on the network, `port` the one that it listens on, `health` a command without `CMD`.

    `command`, `environment` and `health` are as the file has them, to be filled in by `interpolate`.
    """

    name: str
    image: str
    built: bool
    command: tuple[str, ...]
    environment: Mapping[str, str]
    hosts: tuple[str, ...]
    port: int
    needs: tuple[str, ...]
    health: tuple[str, ...]
    health_wait_s: float
    mounts: tuple[Mount, ...]
    tmpfs: tuple[str, ...]
    stop_signal: str
    stop_grace_s: float


def load(file: Path, profile: str, variables: Mapping[str, str]) -> list[Service]:
    """Services without a profile and those of `profile`, each after those that it depends on.

    Raises `StackError` for a profile that is not there and for a required variable that `variables` lacks.
    """
    described = yaml.safe_load(file.read_text())["services"]
    profiles = sorted({name for service in described.values() for name in service.get("profiles", [])})
    if profile not in profiles:
        raise StackError(f"profile {profile!r}: {file.name} has {' and '.join(profiles)}")
    chosen = {
        name: _service(name, service, variables)
        for name, service in described.items()
        if profile in service.get("profiles", [profile])
    }
    order = TopologicalSorter({name: service.needs for name, service in chosen.items()}).static_order()
    return [chosen[name] for name in order]


def interpolate(text: str, variables: Mapping[str, str], own: Callable[[str], str] = str) -> str:
    """Fill in variables; an empty one counts as missing. What is the file's own goes through `own`, what a variable
    holds does not. Raises `StackError`."""

    def value(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        if match["unknown"] is not None:
            raise StackError(f"{text!r}: a variable in a form that is not understood")
        found = variables.get(match["name"], "")
        if not found and match["form"] == ":?":
            raise StackError(f"{match['name']} is missing: {match['text']}")
        return found or own(match["text"] or "")

    filled, end = "", 0
    for match in VARIABLE.finditer(text):
        filled += own(text[end : match.start()]) + value(match)
        end = match.end()
    return filled + own(text[end:])


def seconds(duration: str) -> float:
    """Of `1m30s` 90; raises `StackError` for what is no duration."""
    match = DURATION.fullmatch(duration)
    if not match or not duration:
        raise StackError(f"{duration!r} is no duration like 1m30s")
    return int(match["h"] or 0) * 3600 + int(match["m"] or 0) * 60 + int(match["s"] or 0)


def _interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return interpolate(value, variables)
    if isinstance(value, dict):
        return {key: _interpolate(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolate(item, variables) for item in value]
    return value


def _service(name: str, described: dict[str, Any], variables: Mapping[str, str]) -> Service:
    filled = _interpolate(described, variables)  # all of it, so that no variable is found missing later
    health = described["healthcheck"]
    return Service(
        name=name,
        image=filled["image"],
        built="build" in described,
        command=(*described.get("entrypoint", ()), *described.get("command", ())),
        environment=_environment(described.get("environment", {}), variables),
        hosts=(name, *_aliases(described["networks"])),
        port=int(filled["expose"][0]),
        needs=tuple(described.get("depends_on", ())),
        health=tuple(health["test"][1:]),
        health_wait_s=seconds(health["start_period"]) + seconds(health["interval"]) * health["retries"],
        mounts=tuple(Mount(*volume.split(":")[:2]) for volume in filled.get("volumes", ())),
        tmpfs=tuple(path.split(":")[0] for path in filled.get("tmpfs", ())),
        stop_signal=described.get("stop_signal", "SIGTERM"),
        stop_grace_s=seconds(described.get("stop_grace_period", "10s")),
    )


def _environment(described: dict[str, Any], variables: Mapping[str, str]) -> dict[str, str]:
    """A key without a value is passed on if it is set, and otherwise left out."""
    present = {key: value for key, value in described.items() if value is not None or key in variables}
    return {key: f"${{{key}}}" if value is None else str(value) for key, value in present.items()}


def _aliases(networks: Any) -> tuple[str, ...]:
    if isinstance(networks, list):
        return ()
    return tuple(alias for network in networks.values() for alias in network.get("aliases", ()))
