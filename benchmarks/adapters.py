"""Trained adapters from a running server or from a folder of downloaded archives."""

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx

from benchmarks.recall_plan import Drawn, draw_plan
from loramem.client import Client
from loramem.records import AdapterManifest
from loramem.store import CONFIG, MANIFEST, WEIGHTS

if TYPE_CHECKING:
    from trainer_worker.adapter import TrainedAdapter


@dataclass(frozen=True)
class Archive:
    """The files of one adapter, as `GET /adapters/{id}/download` gives them."""

    files: dict[str, bytes]

    @classmethod
    def of(cls, tar: bytes) -> Self:
        with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
            streams = {Path(entry.name).name: opened.extractfile(entry) for entry in opened}
        return cls({name: stream.read() for name, stream in streams.items() if stream is not None})

    @property
    def manifest(self) -> AdapterManifest:
        return AdapterManifest.model_validate_json(self.files[MANIFEST])

    def adapter(self, strength: float = 1.0) -> "TrainedAdapter":
        """Its update scaled by `strength`, and by whatever its alpha is beside the usual one, both through B."""
        import torch
        from safetensors.torch import load

        from trainer_worker.adapter import ALPHA_PER_RANK, TrainedAdapter

        config = json.loads(self.files[CONFIG])
        scale = strength * config["lora_alpha"] / (ALPHA_PER_RANK * config["r"])
        weights = {name: tensor.to(torch.float32) for name, tensor in load(self.files[WEIGHTS]).items()}
        scaled = {name: tensor * scale if ".lora_B." in name else tensor for name, tensor in weights.items()}
        return TrainedAdapter(config["r"], scaled, {})


class Adapters:
    """The adapters of a running server. Every method raises `httpx.HTTPError`."""

    def __init__(self, url: str, api_key: str | None = None, transport: httpx.BaseTransport | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=60, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def of(self, document_id: str) -> list[dict[str, Any]]:
        """Those that serve a document, by chunk."""
        live = [one for one in self._pages(document_id) if one["state"] == "live"]
        return sorted(live, key=lambda one: one["chunk"])

    def archive(self, adapter_id: str) -> Archive:
        return Archive.of(self._get(f"/adapters/{adapter_id}/download").content)

    def _pages(self, document_id: str) -> Iterator[dict[str, Any]]:
        after: dict[str, str] = {}
        while True:
            page = self._get("/adapters", document_id=document_id, **after).json()
            yield from page["data"]
            if not page["has_more"]:
                return
            after = {"after": page["next_cursor"]}

    def _get(self, path: str, **params: str) -> httpx.Response:
        return self._http.get(path, params=params).raise_for_status()


def live_draw(client: Client, options: argparse.Namespace) -> list[tuple[Drawn, str]]:
    """The draw that `options` (dataset, documents, questions_per_document, seed) mean, with the server's document ids.

    Raises `SystemExit` for a document that is not live in the client's namespace.
    """
    plan = draw_plan(
        options.dataset,
        None,
        [options.seed],
        [],
        documents=options.documents,
        questions=options.questions_per_document,
        max_tokens=None,
        max_seconds=None,
    )
    live = {one["external_id"]: one["id"] for one in client.documents() if one["state"] == "live"}
    drawn = plan.draws[options.seed]
    if missing := [one.key for one in drawn if one.key not in live]:
        raise SystemExit(f"not live in namespace {options.namespace!r}: {', '.join(missing)}")
    return [(one, live[one.key]) for one in drawn]


def read_archives(folder: Path) -> list[Archive]:
    """Every `*.tar` of the folder, by name."""
    return [Archive.of(file.read_bytes()) for file in sorted(folder.glob("*.tar"))]
