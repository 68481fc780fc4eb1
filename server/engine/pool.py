"""As-trained adapters in the engine's worker process: what merges are made from.

vLLM's own copies are bfloat16 with alpha / rank folded into B, and merging those elects other signs; so the pool reads
the published files, checks them against the sha256 in the recipe, and keeps them within a byte budget.
"""

import hashlib
import json
from collections import OrderedDict
from pathlib import Path

from loramem.errors import StoredDataDamaged
from loramem.records import Recipe, Source
from server.engine.combine import MergedAdapter, SourceAdapter, combine, trim


class SourcePool:
    """LRU by bytes, used from the engine's one thread. Trimmed copies for TIES count like any other entry."""

    def __init__(self, root: Path, budget_bytes: int) -> None:
        self.root = root
        self.budget_bytes = budget_bytes
        self._entries: OrderedDict[tuple[str, str, float], SourceAdapter] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self._entries.values())

    def merge(self, recipe: Recipe) -> MergedAdapter:
        """Raises `StoredDataDamaged` for a source that is gone or altered, `ValueError` for ranks that do not merge."""
        trims = recipe.method == "ties" and len(recipe.sources) > 1
        density = recipe.density if trims else 1.0
        return combine(recipe, [self._get(source, density) for source in recipe.sources])

    def _get(self, source: Source, density: float) -> SourceAdapter:
        key = (source.adapter_id, source.sha256, density)
        entry = self._entries.get(key)
        if entry is None:
            whole = read_source(self.root / source.adapter_id, source.sha256)
            tensors = {name: trim(tensor, density) for name, tensor in whole.tensors.items()}
            entry = SourceAdapter(tensors, whole.rank, whole.alpha)
            self._entries[key] = entry
        self._entries.move_to_end(key)
        self._evict(keep=key)
        return entry

    def _evict(self, keep: tuple[str, str, float]) -> None:
        for key in list(self._entries):
            if self.size_bytes <= self.budget_bytes or key == keep:
                return
            del self._entries[key]


def read_source(folder: Path, sha256: str) -> SourceAdapter:
    """Load a published adapter. Raises `StoredDataDamaged` when it is missing or its sha256 differs."""
    from safetensors.torch import load

    try:
        content = (folder / "adapter_model.safetensors").read_bytes()
        config = json.loads((folder / "adapter_config.json").read_text())
    except OSError as error:
        raise StoredDataDamaged(f"adapter {folder.name} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StoredDataDamaged(f"adapter {folder.name} does not match its sha256")
    return SourceAdapter(load(content), int(config["r"]), float(config["lora_alpha"]))
