"""A model name that is a recipe: lets a stock `vllm serve` answer from published adapters and merges of them.

    loramem:ADAPTER                                  the adapter as it was trained
    loramem:METHOD?ADAPTER=WEIGHT&...&OPTION=VALUE   a merge of 1 to 8; options: density, sign_method, seed

vLLM asks its resolvers about a name it does not know (`OpenAIServingModels.resolve_lora`), if
VLLM_ALLOW_RUNTIME_LORA_UPDATING is set. Ours reads the manifests and answers with a recipe as the path, which the
plugin merges. A weight is what PEFT's `add_weighted_adapter` gets: for `ties` a gain, 1 each keeps the strength.
Ranks are the engine's business: it refuses what does not fit while it loads, before any request is scheduled.
"""

import asyncio
import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from vllm import envs
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from loramem.errors import LoramemError, StoredDataDamaged
from loramem.records import (
    MERGE_OPTIONS,
    MIN_DENSITY,
    MergeMethod,
    Recipe,
    SignMethod,
    Source,
)
from loramem.settings import load_settings
from loramem.store import WEIGHTS, AdapterStore

log = logging.getLogger("vllm.loramem")  # `vllm serve` shows no others

NAME_PREFIX = "loramem:"
RESOLVER = "loramem"
MOST_ADAPTERS = 8
LONGEST_NAME = 1024
"""In characters; vLLM keeps every name it has resolved until it is unloaded."""
LARGEST_WEIGHT = 100.0
"""Far above use; at a strength of 100 the model writes noise, and beyond it numbers overflow."""

_METHODS: Mapping[str, MergeMethod] = {method: method for method in get_args(MergeMethod)}
_SIGN_METHODS: Mapping[str, SignMethod] = {method: method for method in get_args(SignMethod)}
_ADAPTER_ID = re.compile(r"[a-z0-9_]{1,32}")
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?(e-?[0-9]+)?")
_SEED = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True)
class NamedMerge:
    """What a name spells out: a recipe without checksums. `weights` by adapter id."""

    method: MergeMethod
    weights: Mapping[str, float]
    density: float = 0.5
    sign_method: SignMethod = "total"
    seed: int = 0


def parse_name(name: str) -> NamedMerge:
    """Read a name that starts with `NAME_PREFIX`. Raises `ValueError` that says what is wrong and what is allowed."""
    if len(name) > LONGEST_NAME:
        raise ValueError(f"{len(name)} characters; allowed are {LONGEST_NAME}")
    head, mark, query = name.removeprefix(NAME_PREFIX).partition("?")
    if not mark:
        return NamedMerge("linear", {_adapter_id(head): 1.0})
    if head not in _METHODS:
        raise ValueError(f"method {head!r}; allowed are {', '.join(_METHODS)}")
    pairs = _pairs(query)
    options = {key: pairs.pop(key) for key in MERGE_OPTIONS if key in pairs}
    for key in options:
        if head not in MERGE_OPTIONS[key]:
            raise ValueError(f"{head} takes no {key}; it is for {', '.join(sorted(MERGE_OPTIONS[key]))}")
    if not 1 <= len(pairs) <= MOST_ADAPTERS:
        raise ValueError(f"{len(pairs)} adapters; allowed are 1 to {MOST_ADAPTERS}")
    weights = {_adapter_id(key): _number(key, value, -LARGEST_WEIGHT, LARGEST_WEIGHT) for key, value in pairs.items()}
    return NamedMerge(_METHODS[head], weights, _density(options), _sign_method(options), _seed(options))


def _pairs(query: str) -> dict[str, str]:
    """`a=1&b=2` by key. Nothing is percent-decoded: no allowed character needs it."""
    pairs: dict[str, str] = {}
    for part in query.split("&"):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} is no pair KEY=VALUE")
        if key in pairs:
            raise ValueError(f"{key!r} stands there twice")
        pairs[key] = value
    return pairs


def _density(options: Mapping[str, str]) -> float:
    return _number("density", options.get("density", "0.5"), MIN_DENSITY, 1)


def _sign_method(options: Mapping[str, str]) -> SignMethod:
    sign_method = options.get("sign_method", "total")
    if sign_method not in _SIGN_METHODS:
        raise ValueError(f"sign_method={sign_method!r}; allowed are {', '.join(_SIGN_METHODS)}")
    return _SIGN_METHODS[sign_method]


def _seed(options: Mapping[str, str]) -> int:
    seed = options.get("seed", "0")
    if not _SEED.fullmatch(seed) or int(seed) >= 1 << 31:
        raise ValueError(f"seed={seed!r} is no whole number from 0 to {(1 << 31) - 1}")
    return int(seed)


def _adapter_id(text: str) -> str:
    if not _ADAPTER_ID.fullmatch(text):
        raise ValueError(f"{text!r} is no adapter id: 1 to 32 of a-z, 0-9 and _")
    return text


def _number(key: str, text: str, least: float, most: float) -> float:
    """Plain decimals only: `float` alone would take `nan`, `inf`, `1_0` and other scripts' digits."""
    value = float(text) if _DECIMAL.fullmatch(text) else math.nan
    if not least <= value <= most:  # neither for a NaN
        raise ValueError(f"{key}={text!r} is no number from {least:g} to {most:g}")
    return value


def pinned_recipe(merge: NamedMerge, store: AdapterStore) -> Recipe:
    """The recipe with the sha256 of each adapter's weights, from the manifests; the weights themselves stay unread.

    Raises `StoredDataDamaged` for an adapter that is missing or has an unusable manifest, `ValueError` for adapters
    of different base models.
    """
    sources, fingerprints = [], set()
    for adapter_id, weight in merge.weights.items():
        manifest = store.manifest(adapter_id)
        if manifest.adapter_id != adapter_id or WEIGHTS not in manifest.sha256:
            raise StoredDataDamaged(f"adapter {adapter_id}: its manifest is that of another, or names no {WEIGHTS}")
        sources.append(Source(adapter_id=adapter_id, sha256=manifest.sha256[WEIGHTS], weight=weight))
        fingerprints.add(manifest.fingerprint)
    if len(fingerprints) > 1:
        raise ValueError("these adapters were trained on different base models")
    return Recipe.of(merge.method, sources, merge.density, merge.sign_method, merge.seed)


class RecipeResolver(LoRAResolver):  # type: ignore[misc] # vLLM is untyped for mypy
    """One per API server."""

    def __init__(self, store: AdapterStore) -> None:
        self._store = store

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The adapter that the name means, or None, upon which vLLM answers 404; the log says why."""
        if not lora_name.startswith(NAME_PREFIX):
            return None
        try:
            recipe = await asyncio.to_thread(self._recipe, lora_name)
        except (ValueError, LoramemError) as error:
            log.warning("no model %.200r: %s", lora_name, error)
            return None
        # The name stays as it was asked for, because vLLM keeps requests apart by it; the id is replaced by vLLM.
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=recipe.path())

    def _recipe(self, name: str) -> Recipe:
        return pinned_recipe(parse_name(name), self._store)


def register_resolver(adapters_variable: str) -> None:
    """Hand the resolver to vLLM, where it will be asked. Raises `SettingsError` when the adapters' folder is unknown.

    `adapters_variable` names that folder to the engine's processes too, so the default is put there.
    """
    if not envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING or RESOLVER in LoRAResolverRegistry.get_supported_resolvers():
        return
    root = os.environ.get(adapters_variable) or str(load_settings().adapters_path)
    os.environ[adapters_variable] = root
    LoRAResolverRegistry.register_resolver(RESOLVER, RecipeResolver(AdapterStore(Path(root))))
