"""A gateway behind its HTTP surface, and what tests do to it again and again."""

import json
from dataclasses import dataclass
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import func, select

from loramem.embed import Embedder
from loramem.tables import Base, Installation
from server.gateway import Gateway
from tests.server.learned import learn
from tests.server.scripted_engine import ScriptedEngine

LIGHTHOUSE = (
    "The lighthouse of Korrin stands on a reef of red basalt. Its lamp was mended by the keeper Ansel Brandt. "
    "Ships see the lamp from nineteen miles away. The stair inside has two hundred and six steps of oak. "
)
BAKERY = (
    "The bakery of Tamsin Oake opens at four in the morning. Its rye loaves rise in baskets of willow. "
    "A loaf costs three crowns, and on Sundays the baker gives away the burnt ones. "
)
QUESTION = "Who mended the lamp of the lighthouse?"
Json = dict[str, Any]


@dataclass
class Memory:
    gateway: Gateway
    client: TestClient
    embedder: Embedder

    @property
    def engine(self) -> ScriptedEngine:
        assert isinstance(self.gateway.engine, ScriptedEngine)
        return self.gateway.engine

    def upload(self, text: str = LIGHTHOUSE, **fields: Any) -> Json:
        """POST a text; returns the 202's body."""
        reply = self.client.post("/documents", json={"text": text, **fields})
        assert reply.status_code == 202, reply.text
        accepted: Json = reply.json()
        return accepted

    def teach(self, text: str = LIGHTHOUSE, *, rank: int = 16, chunk_tokens: int = 768, **fields: Any) -> str:
        """POST a text and do its job; returns the document's id."""
        document_id: str = self.upload(text, **fields)["document"]["id"]
        learn(self.gateway, self.embedder, rank=rank, chunk_tokens=chunk_tokens)
        return document_id

    def ask(self, **body: Any) -> Json:
        reply = self.client.post("/query", json={"question": QUESTION, **body})
        assert reply.status_code == 200, reply.text
        answer: Json = reply.json()
        return answer

    def rows(self) -> dict[str, int]:
        """Rows in each table but the schema's own: equal before and after whatever changed nothing."""
        with self.gateway.database.read() as session:
            return {
                table.name: session.scalar(select(func.count()).select_from(table)) or 0
                for table in Base.metadata.sorted_tables
                if table.name != Installation.__tablename__
            }


def events_of(text: str) -> list[tuple[str, Any]]:
    """Server-sent events as (event, data), comments left out; data that is no JSON stays text."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            data = fields["data"]
            found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found
