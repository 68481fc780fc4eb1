"""One namespace's words: of its chunks, of their windows, and of the questions that its live adapters learnt."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy.orm import Session

from loramem.lexical import Entry, Lexicon, Words
from loramem.served import chunk_texts, question_texts, window_texts

Read = Callable[[Session, Iterable[str]], Iterator[Entry]]


@dataclass(frozen=True)
class NamespaceWords:
    """Words of one moment; None where there is no text at all."""

    chunks: Words | None = None
    windows: Words | None = None
    questions: Words | None = None


class _Following:
    """A lexicon and the versions of the groups that it holds."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._lexicon: Lexicon | None = None
        self._held: Mapping[str, str] = {}

    def follow(self, session: Session, served: Mapping[str, str]) -> None:
        gone = {key for key, version in self._held.items() if served.get(key) != version}
        new = {key for key, version in served.items() if self._held.get(key) != version}
        if gone or new:
            self._lexicon = self._lexicon or Lexicon()
            self._lexicon.change(gone, self._read(session, new))
        self._held = dict(served)

    def words(self) -> Words | None:
        return self._lexicon.snapshot() if self._lexicon else None


class ServedWords:
    """Changed by one thread at a time."""

    def __init__(self) -> None:
        self._chunks = _Following(chunk_texts)
        self._windows = _Following(window_texts)
        self._questions = _Following(question_texts)

    def follow(self, session: Session, documents: Mapping[str, str], adapters: Mapping[str, str]) -> NamespaceWords:
        """Take over what this transaction serves, keys with their versions."""
        self._chunks.follow(session, documents)
        self._windows.follow(session, documents)
        self._questions.follow(session, adapters)
        return NamespaceWords(self._chunks.words(), self._windows.words(), self._questions.words())
