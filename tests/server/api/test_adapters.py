"""/adapters: what was trained, and the folders themselves."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import torch
from safetensors.torch import load, save_file

from loramem.store import CONFIG, MANIFEST, WEIGHTS
from tests.server.api.memory import BAKERY, LIGHTHOUSE, Json, Memory
from tests.server.learned import peft_tensors


def test_adapters_are_listed_with_what_they_are(memory: Memory) -> None:
    document_id = memory.teach(LIGHTHOUSE, rank=32)
    memory.teach(BAKERY, namespace="town")
    page = memory.client.get("/adapters").json()
    assert (len(page["data"]), page["has_more"]) == (2, False)
    first = page["data"][0]
    assert (first["document_id"], first["rank"], first["alpha"], first["chunk"]) == (document_id, 32, 64, 0)
    assert (first["state"], first["revision"], first["namespace"]) == ("live", 1, "default")
    assert first["base_fingerprint"] == memory.gateway.base.fingerprint
    assert first["exam"]["recall"] == 0.75
    assert memory.client.get(f"/adapters/{first['id']}").json() == first


def test_the_list_can_be_narrowed_and_paged(memory: Memory) -> None:
    document_id = memory.teach("\n\n".join(f"{LIGHTHOUSE} Number {n}." for n in range(4)), chunk_tokens=64)
    memory.teach(BAKERY, namespace="town")
    every = memory.client.get("/adapters").json()["data"]
    assert len(every) > 3
    town = memory.client.get("/adapters", params={"namespace": "town"}).json()["data"]
    assert [adapter["namespace"] for adapter in town] == ["town"]
    mine = memory.client.get("/adapters", params={"document_id": document_id}).json()["data"]
    assert sorted(adapter["chunk"] for adapter in mine) == list(range(len(every) - 1))
    seen: list[Json] = []
    after: str | None = ""
    while after is not None:
        page = memory.client.get("/adapters", params={"limit": 2} | ({"after": after} if after else {})).json()
        seen += page["data"]
        after = page["next_cursor"]
    assert seen == every


def test_a_download_is_the_peft_folder_with_its_manifest(memory: Memory, tmp_path: Path) -> None:
    memory.teach(rank=8)
    (adapter,) = memory.client.get("/adapters").json()["data"]
    reply = memory.client.get(f"/adapters/{adapter['id']}/download")
    assert reply.headers["content-type"] == "application/x-tar"
    assert f'"{adapter["id"]}.tar"' in reply.headers["content-disposition"]
    with tarfile.open(fileobj=io.BytesIO(reply.content)) as archive:
        files = {Path(entry.name).name: archive.extractfile(entry) for entry in archive.getmembers()}
        content = {name: stream.read() for name, stream in files.items() if stream is not None}
    assert content.keys() == {CONFIG, WEIGHTS, MANIFEST}
    assert hashlib.sha256(content[WEIGHTS]).hexdigest() == adapter["sha256"]
    assert json.loads(content[CONFIG])["r"] == 8
    assert json.loads(content[MANIFEST])["adapter_id"] == adapter["id"]
    for name, tensor in peft_tensors(8).items():
        assert torch.equal(load(content[WEIGHTS])[name], tensor)


def test_a_damaged_adapter_is_not_sent(memory: Memory) -> None:
    memory.teach()
    (adapter,) = memory.client.get("/adapters").json()["data"]
    save_file(peft_tensors(16, seed=9), memory.gateway.store.path(adapter["id"]) / WEIGHTS)
    reply = memory.client.get(f"/adapters/{adapter['id']}/download")
    assert (reply.status_code, reply.json()["code"]) == (500, "stored-data-damaged")


def test_a_retired_adapter_is_listed_while_its_files_are_there(memory: Memory) -> None:
    document_id = memory.teach()
    memory.client.delete(f"/documents/{document_id}")
    (adapter,) = memory.client.get("/adapters").json()["data"]
    assert adapter["state"] == "retired"
    assert memory.client.get(f"/adapters/{adapter['id']}/download").status_code == 200
