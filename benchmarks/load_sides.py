"""What decides the figures of gateway and engine, as far as they tell: slots, batch, and drafted tokens.

Slots and drafts are on the /metrics of both. Batches are not: they are known where this run starts the engine itself,
by settings that the gateway is taken to share.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load_engine import GPU_MEMORY, machine_options
from loramem.errors import SettingsError
from loramem.settings import load_settings
from server.engine.options import BATCHED_TOKENS

Json = dict[str, Any]
GATEWAY, ENGINE = "gateway", "engine"
DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
SLOTS = "loramem_slots"
BARE_SLOTS, SLOTS_LABEL = "vllm:lora_requests_info", "max_lora"


@dataclass(frozen=True)
class Told:
    """None for what is not told: `slots` of a bare engine before an adapter ran, `drafted` tokens without metrics."""

    slots: int | None = None
    drafted: int | None = None

    def since(self, before: "Told") -> "Told":
        known = self.drafted is not None and before.drafted is not None
        return Told(self.slots, (self.drafted or 0) - (before.drafted or 0) if known else None)


Sides = Mapping[str, Told]
Tell = Callable[[], Awaitable[Sides]]
"""What `GATEWAY` and `ENGINE` tell now."""


@dataclass(frozen=True)
class Batch:
    """Of one step; None where it is not known, as of what vLLM chooses."""

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None


async def told_by(http: httpx.AsyncClient) -> Told:
    """Nothing where /metrics cannot be read: in front of a stock engine there may be a proxy."""
    try:
        return told((await http.get("/metrics")).raise_for_status().text)
    except httpx.HTTPError:
        return Told()


def told(exposition: str) -> Told:
    """A server that drafts nothing does not count drafts either: 0."""
    samples = [one for family in text_string_to_metric_families(exposition) for one in family.samples]
    slots = [int(one.value) for one in samples if one.name == SLOTS]
    slots += [int(one.labels[SLOTS_LABEL]) for one in samples if one.name == BARE_SLOTS]
    return Told(max(slots, default=None), int(sum(one.value for one in samples if one.name == DRAFTED)))


def batches(home: Path | None) -> dict[str, Batch]:
    """By the settings of a data folder, whose engine `bare_engine` starts. Unknown without one, and where they are
    wrong, which `bare_engine` says."""
    try:
        settings = load_settings(home=home) if home else None
    except SettingsError:
        settings = None
    if settings is None:
        return {GATEWAY: Batch(), ENGINE: Batch()}
    options, name = machine_options(settings, GPU_MEMORY), "--max-num-batched-tokens"
    tokens = int(options[options.index(name) + 1]) if name in options else None
    most = settings.max_concurrent_requests
    return {GATEWAY: Batch(most, max(settings.max_model_len, BATCHED_TOKENS)), ENGINE: Batch(most, tokens)}


def settings_of(told: Told, batch: Batch) -> Json:
    """As a report has them."""
    return {"slots": told.slots, **vars(batch), "drafted_tokens": told.drafted}
