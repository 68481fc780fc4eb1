"""What an answer may repeat word for word: what the adapters that give it were taught, and examined with."""

from collections.abc import Iterable
from functools import lru_cache

from sqlalchemy import bindparam, func, select

from loramem.chat import encode_texts
from loramem.database import Database
from loramem.tables import Adapter, AdapterState, Chunk, Question, Revision
from server.engine.engine import Engine
from server.engine.speculate import packed

KEPT = 4096
"""Adapters whose drafts are kept in memory, some ten kilobytes each."""

ANSWERS = 256
"""Of one adapter, whose user may have given thousands."""

AHEAD = 64
"""The newest adapters, whose drafts are read before they are asked for: what was just learnt is asked next."""

_ANSWERS = select(Question.answer).where(Question.adapter_id == bindparam("adapter_id")).distinct().limit(ANSWERS)
_NEWEST = select(Adapter.id).where(Adapter.state == AdapterState.LIVE).order_by(Adapter.id.desc())
_TEXT = (
    select(func.substr(Revision.text, Chunk.start + 1, Chunk.end - Chunk.start))
    .join(Chunk, (Chunk.document_id == Revision.document_id) & (Chunk.revision == Revision.number))
    .join(Adapter, Adapter.chunk_id == Chunk.id)
    .where(Adapter.id == bindparam("adapter_id"))
)


class Drafts:
    """Answers first, each with the token that ends it, then the text of the chunk, in tokens (`speculate.packed`)."""

    def __init__(self, database: Database, engine: Engine) -> None:
        self._database = database
        self._engine = engine
        self._kept = lru_cache(KEPT)(self._read)  # an adapter never changes

    def of(self, adapter_ids: Iterable[str]) -> dict[str, bytes]:
        """By adapter id; reads the database for those that were not asked for lately."""
        return {adapter_id: self._kept(adapter_id) for adapter_id in adapter_ids}

    def read_ahead(self) -> None:
        """Those of the newest adapters, once the engine runs: reading one takes milliseconds of a question."""
        if self._engine.running and self._engine.speculates:
            with self._database.read() as session:
                newest = session.scalars(_NEWEST.limit(AHEAD)).all()
            self.of(newest)

    def _read(self, adapter_id: str) -> bytes:
        with self._database.read() as session:
            answers = session.scalars(_ANSWERS, {"adapter_id": adapter_id}).all()
            texts = session.scalars(_TEXT, {"adapter_id": adapter_id}).all()
        tokens = encode_texts(self._engine.tokenizer, [*answers, *texts])
        for answer in tokens[: len(answers)]:
            answer.append(self._engine.end_of_turn)
        return packed(tokens)
