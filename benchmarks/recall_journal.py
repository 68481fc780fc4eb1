"""What a run has done so far, a JSON object a line, written at once: a run that was killed goes on from here.

settings   what the run asks; the first line
document   one that the server has: its id there, and whether this run put it there
learnt     a namespace whose documents are live, and after how many seconds
refused    a method that the server does not know, and what it said
answer     an answer with its scores, or to a question that nothing uploaded answers (`answerable` is false)
judgement  a judge's opinion on an answer
"""

import json
from pathlib import Path
from typing import Any, TextIO

Line = dict[str, Any]
Key = tuple[int, str, int, str]
"""Of an answer: seed, document (its external id), number of the question in it, method."""


class NotThisRun(SystemExit):
    """The journal is of other settings, or damaged: going on with it would mix results."""


def key_of(line: Line) -> Key:
    return line["seed"], line["document"], line["question_number"], line["method"]


class Journal:
    """In memory, and in `file` where there is one. Opening an existing one reads it."""

    def __init__(self, file: Path | None, settings: Line, fresh_namespace: str) -> None:
        """Where `settings` name no namespace, it is the file's, or the fresh one where there is no file yet.

        Raises `NotThisRun` when `file` holds other settings than `settings`.
        """
        self.answers: dict[Key, Line] = {}
        self.judgements: dict[Key, Line] = {}
        self.learnt: list[Line] = []
        self.refused: dict[str, str] = {}
        self.documents: dict[tuple[str, str], Line] = {}
        self.settings = settings | {"namespace": settings["namespace"] or fresh_namespace}
        self._stream: TextIO | None = None
        lines = _read(file) if file and file.exists() else []
        for line in lines[1:]:
            self._remember(line)
        if lines:
            self.settings = _agreed(lines[0], settings, file)
        if file:
            self._stream = file.open("a", encoding="utf-8")
        if not lines:
            self._append({"kind": "settings"} | self.settings)

    def close(self) -> None:
        if self._stream:
            self._stream.close()

    def add(self, kind: str, line: Line) -> None:
        whole = {"kind": kind} | line
        self._remember(whole)
        self._append(whole)

    def created(self, namespace: str) -> list[str]:
        """Ids of the documents there that this run has put there."""
        held = [line for (place, _), line in self.documents.items() if place == namespace]
        return [line["id"] for line in held if line["created"]]

    def _remember(self, line: Line) -> None:
        if line["kind"] == "document":
            self._remember_document(line)
        elif line["kind"] == "learnt":
            self.learnt.append(line)
        elif line["kind"] == "refused":
            self.refused[line["method"]] = line["reason"]
        elif line["kind"] == "answer":
            self.answers[key_of(line)] = line
        elif line["kind"] == "judgement":
            self.judgements[key_of(line)] = line
        else:
            raise NotThisRun(f"the journal has a line of an unknown kind: {line['kind']!r}")

    def _remember_document(self, line: Line) -> None:
        """A document that this run created stays its own when a later part of the run finds it there."""
        key = (line["namespace"], line["document"])
        known = self.documents.get(key)
        same = known is not None and known["id"] == line["id"] and known["created"]
        self.documents[key] = line | {"created": True} if same else line

    def _append(self, line: Line) -> None:
        if self._stream:
            self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._stream.flush()


def _read(file: Path) -> list[Line]:
    """All whole lines; one that a kill cut short is taken off the file."""
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with file.open("r+b") as stream:
            stream.truncate(len(whole))
    lines = []
    for number, text in enumerate(whole.decode().split("\n")[:-1], 1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise NotThisRun(f"{file.name}:{number}: not JSON: {error}") from error
    return lines


def _agreed(first: Line, settings: Line, file: Path | None) -> Line:
    """The settings as the journal has them. A namespace that was not named is the journal's."""
    written = {name: value for name, value in first.items() if name != "kind"}
    wanted = settings | {"namespace": settings["namespace"] or written.get("namespace")}
    different = [name for name in {**wanted, **written} if wanted.get(name) != written.get(name)]
    if first.get("kind") != "settings" or different:
        said = ", ".join(f"{name}: {written.get(name)!r} there, {wanted.get(name)!r} now" for name in different)
        raise NotThisRun(f"{file.name if file else 'the journal'} is of another run: {said}")
    return written
