"""What vLLM is started with: its options and its environment, by our settings."""

import logging
import os
from pathlib import Path
from typing import Any

from loramem import chat, tracing
from loramem.base_model import BaseModel, kv_bytes
from loramem.precision import precision
from loramem.settings import Settings
from server.engine import speculate
from server.engine.plugin import (
    ADAPTERS_VARIABLE,
    BUDGET_VARIABLE,
    DEVICE_BUDGET_VARIABLE,
    LOG_LEVEL_VARIABLE,
    OWN_VARIABLE,
)

BATCHED_TOKENS = 4096
"""In one step of the engine; a prompt must fit one step where it cannot be prefilled in chunks."""

BLOCK_TOKENS = 128
"""Of the key-value cache on a CPU, by vLLM's own choice."""

REGISTERED = 256
"""Adapters that vLLM knows at once, each a few hundred bytes. It copies the list of them several times a step (0.07 ms
for so many); one that it forgets is opened again from the pool, which keeps far more of them mapped."""


def set_environment(settings: Settings) -> None:
    """vLLM's worker processes read these; they are inherited, not passed."""
    os.environ[ADAPTERS_VARIABLE] = str(settings.adapters_path)
    os.environ[BUDGET_VARIABLE] = str(settings.source_pool_bytes)
    os.environ[DEVICE_BUDGET_VARIABLE] = str(settings.device_pool_bytes)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")  # it is compiled by nvcc at the start; vLLM's own is not
    os.environ.setdefault("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")  # as our own spans are sent
    os.environ[OWN_VARIABLE] = "1"
    os.environ[LOG_LEVEL_VARIABLE] = settings.log_level
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")  # ours: one form of line, with ids
    logging.getLogger("vllm").setLevel(logging.WARNING)


def gpu_share(settings: Settings, gpu_bytes: int) -> float:
    """What vLLM may take of the GPU: the pool of adapters beside it is of the engine's share too."""
    return max(0.01, settings.gpu_memory_fraction - settings.device_pool_bytes / gpu_bytes)


def step_tokens(settings: Settings) -> int:
    """The most that the engine reads in one step; each of its sequences has at least one of them."""
    return max(settings.max_model_len, BATCHED_TOKENS)


def least_kv_cache_bytes(settings: Settings, base: BaseModel) -> int:
    """Of one window on a CPU, with the block that vLLM keeps empty; 0 when the model's configuration does not say."""
    blocks = -(-settings.max_model_len // BLOCK_TOKENS) + 1
    return blocks * BLOCK_TOKENS * kv_bytes(base, precision())


def engine_args(settings: Settings, base: BaseModel) -> Any:
    """vLLM's `AsyncEngineArgs` for these settings, on a GPU where there is one."""
    import torch
    from vllm import AsyncEngineArgs

    from server.engine.cpu_norm import PRIORITY

    on_gpu = torch.cuda.is_available()
    options: dict[str, Any] = (
        {"gpu_memory_utilization": gpu_share(settings, torch.cuda.get_device_properties(0).total_memory)}
        if on_gpu
        else {"ir_op_priority": PRIORITY, "kv_cache_memory_bytes": settings.kv_cache_bytes}
    )
    return AsyncEngineArgs(
        model=str(Path(base.path)),
        # What the trainer reads, where a folder has weights, configuration or tokenizer in another form as well.
        tokenizer=str(chat.tokenizer_folder(base.path, settings.cache_path)),
        tokenizer_mode="hf",
        config_format="hf",
        load_format="safetensors",
        served_model_name=[base.name],
        dtype=precision(),
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_concurrent_requests,
        enable_lora=True,
        max_loras=settings.max_loras,
        max_cpu_loras=REGISTERED,
        max_lora_rank=settings.max_lora_rank,
        worker_extension_cls="server.engine.extension.WorkerExtension",
        enforce_eager=not on_gpu,  # a CPU would need a C++ compiler on the user's machine
        # On a CPU, vLLM 0.32 dies when a request with a seed is prefilled in chunks: it rewinds its generator in vain.
        enable_chunked_prefill=on_gpu,
        max_num_batched_tokens=step_tokens(settings),
        enable_prefix_caching=True,
        use_tqdm_on_load=False,
        seed=settings.seed,
        speculative_config=speculate.configuration(settings, on_gpu),
        otlp_traces_endpoint=tracing.traces_url(settings),
        **options,
    )
