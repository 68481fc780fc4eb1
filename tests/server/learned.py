"""What the worker does for a job, with untrained weights: index the text, store an adapter a chunk, publish."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from loramem.chunk import chunk_text
from loramem.database import new_id
from loramem.embed import Embedder
from loramem.records import AdapterManifest
from loramem.store import CONFIG, WEIGHTS, AdapterStore, Stored
from loramem.tables import Chunk, Revision
from server.gateway import Gateway
from tests.rows import EXAM
from trainer_worker.index import index_text
from trainer_worker.publish import NewAdapter, publish

LAYER = "base_model.model.model.layers.0.self_attn"


def peft_tensors(rank: int, seed: int = 0, *, width: int = 12) -> dict[str, Tensor]:
    """A and B of `q_proj` and `v_proj` under PEFT's names, with random entries."""
    noise = torch.Generator().manual_seed(seed)
    shapes = {"lora_A": (rank, width), "lora_B": (width, rank)}
    return {
        f"{LAYER}.{module}.{side}.weight": torch.randn(shape, generator=noise)
        for module in ("q_proj", "v_proj")
        for side, shape in shapes.items()
    }


def write_peft(folder: Path, tensors: Mapping[str, Tensor], rank: int, alpha: int) -> None:
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": ["q_proj", "v_proj"]}
    (folder / CONFIG).write_text(json.dumps(config))
    save_file(dict(tensors), folder / WEIGHTS)


def store_adapter(
    store: AdapterStore,
    *,
    rank: int = 16,
    seed: int = 0,
    document_id: str = "doc_1",
    revision: int = 1,
    chunk: int = 0,
    fingerprint: str = "f" * 64,
    config_rank: int | None = None,
) -> tuple[AdapterManifest, Stored]:
    adapter_id, manifests = new_id("ada"), []

    def manifest_of(sha256: dict[str, str]) -> AdapterManifest:
        manifest = AdapterManifest(
            adapter_id=adapter_id,
            document_id=document_id,
            revision=revision,
            chunk=chunk,
            base_model="base",
            fingerprint=fingerprint,
            rank=rank,
            alpha=2 * rank,
            sha256=sha256,
            exam=EXAM,
            training={},
        )
        manifests.append(manifest)
        return manifest

    stored = store.publish(
        adapter_id,
        lambda folder: write_peft(folder, peft_tensors(rank, seed), config_rank or rank, 2 * rank),
        manifest_of,
    )
    return manifests[0], stored


def learn(
    gateway: Gateway, embedder: Embedder, *, rank: int = 16, live: bool = True, chunk_tokens: int = 768
) -> list[str]:
    """Do the job at the head of the queue; without `live` stop once the text is indexed. Returns the adapters' ids."""
    claim = gateway.queue.claim("worker")
    assert claim is not None
    with gateway.database.read() as session:
        revision = session.get_one(Revision, (claim.document_id, claim.revision))
    spans = chunk_text(
        revision.text, embedder.tokenizer_path, max_tokens=chunk_tokens, overlap_tokens=chunk_tokens // 8
    )
    chunks = index_text(gateway.database, claim, embedder, revision, spans, window_tokens=40)
    if not live:
        return []
    adapters = [_new_adapter(gateway, claim.document_id, claim.revision, chunk, rank) for chunk in chunks]
    publish(gateway.database, gateway.queue, claim, adapters)
    return [adapter.manifest.adapter_id for adapter in adapters]


def _new_adapter(gateway: Gateway, document_id: str, revision: int, chunk: Chunk, rank: int) -> NewAdapter:
    manifest, stored = store_adapter(
        gateway.store,
        rank=rank,
        seed=chunk.ordinal,
        document_id=document_id,
        revision=revision,
        chunk=chunk.ordinal,
        fingerprint=gateway.base.fingerprint,
    )
    return NewAdapter(manifest, chunk.id, stored)
