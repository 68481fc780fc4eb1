"""Question sets as documents with questions, each read from its own public form.

    squad        JSON, its authors' {data: [{title, paragraphs: [{context, qas: [{question, answers: [{text}]}]}]}]}, or
                 [{title, context, questions: [{question, answer}]}]
    quality      JSONL, NYU's {article, title, questions: [{question, options, gold_label}]}, or L-Eval's {input,
                 instructions, outputs}, where the options stand inside the question
    narrativeqa  JSONL as on Hugging Face, a question a line: {document: {text}, question: {text}, answers: [{text}]};
                 or JSON {title, text, questions: [{question, answers}]}
    fairytaleqa  JSONL: {story, sections: [{section, text}], questions: [{question, answer1 to answer6, local-or-sum}]}
    paperqa      JSON: [{title, introduction, QA: [{level, question, answer}]}]; QA may be a string, as in a csv
    counterfact  one slice (csv, column `text`) beside the paper's `counterfact_eval_qa.json`
    phonebook    a folder of 16 sectors (csv, column `text`), or one csv: a document each
    jsonl        {text or document, title?, questions: [{question, answer or answers}]}

Files may be compressed (`.gz`). Data is looked for in LORAMEM_BENCH_DATA, else `shared/data` beside the repository.
"""

import ast
import csv
import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.passages import DATA, flattened

LETTERS = "ABCDEFGHIJ"
UNTITLED_WORDS = 8
Record = dict[str, Any]
T = TypeVar("T")
_OPTION = re.compile(r"\(([A-J])\)")


class BadData(ValueError):
    """Names the file, the line or entry, and what is wrong with it."""


@dataclass(frozen=True)
class Asked:
    """`answers` are references, any of which is right. With `options` the only one is option `gold` (from 0)."""

    question: str
    answers: tuple[str, ...]
    level: str | None = None
    options: tuple[str, ...] | None = None
    gold: int | None = None

    @property
    def prompt(self) -> str:
        """The question as it is put: with its options by letter, where it has any."""
        if self.options is None:
            return self.question
        lines = [f"({letter}) {option}" for letter, option in zip(LETTERS, self.options, strict=False)]
        return "\n".join([self.question, *lines, "Answer with the letter of the right option."])


@dataclass(frozen=True)
class Item:
    title: str
    text: str
    questions: tuple[Asked, ...]


@dataclass(frozen=True)
class DataSet:
    """`place` is where the file is under the data folder, `max_tokens` what an answer may take."""

    read: Callable[[Path], list[Item]]
    place: str
    max_tokens: int = 64


def read_items(name: str, file: Path | None) -> tuple[list[Item], Path]:
    """(documents that have a question, the file they are from). Raises `BadData`, and `OSError` without the file."""
    data_set = DATA_SETS[name]
    if file is None and not data_set.place:
        raise BadData(f"{name}: name its file with --data")
    found = file or DATA / data_set.place
    items = [item for item in _joined(data_set.read(found)) if item.questions]
    if not items:
        raise BadData(f"{found.name}: holds no document with a question")
    return items, found


def read_squad(file: Path) -> list[Item]:
    return [item for items in _parsed(file, _squad) for item in items]


def _squad(one: Record) -> list[Item]:
    try:
        passages = flattened(one)
    except (AttributeError, KeyError, TypeError) as error:
        raise BadData(f"`data` must be as in SQuAD: {type(error).__name__}: {error}") from error
    return [Item(_title(each), _text(each, "context"), _qa(_records(each, "questions"))) for each in passages]


def read_paperqa(file: Path) -> list[Item]:
    return _parsed(file, _paper)


def _paper(one: Record) -> Item:
    given = one.get("QA")
    pairs = _literal(given) if isinstance(given, str) else given
    return Item(_title(one), _text(one, "introduction"), _qa(_records({"QA": pairs}, "QA")))


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError) as error:
        raise BadData(f"`QA` must be a list, as JSON or as a Python literal: {error}") from error


def read_quality(file: Path) -> list[Item]:
    return _parsed(file, lambda one: _leval(one) if "instructions" in one else _nyu(one))


def _nyu(one: Record) -> Item:
    return Item(_title(one), _text(one, "article"), tuple(map(_with_options, _records(one, "questions"))))


def _with_options(one: Record) -> Asked:
    options, gold = tuple(_texts(one, "options")), one.get("gold_label")
    if not isinstance(gold, int) or not 1 <= gold <= len(options) <= len(LETTERS):
        raise BadData(f"`gold_label` must be a number from 1 to {len(options)}, not {gold!r}")
    level = "hard" if one.get("difficult") else "easy"
    return Asked(_text(one, "question"), (options[gold - 1],), level, options, gold - 1)


def _leval(one: Record) -> Item:
    asked, wanted = _texts(one, "instructions"), _texts(one, "outputs")
    if len(asked) != len(wanted):
        raise BadData(f"{len(asked)} instructions, but {len(wanted)} outputs")
    return Item(_title(one), _text(one, "input"), tuple(map(_cut_options, asked, wanted)))


def _cut_options(text: str, wanted: str) -> Asked:
    """`stem (A) one (B) two ...` and the right one as `(B) two`. Letters must run from A on."""
    parts = [part.strip() for part in _OPTION.split(text)]
    letters, options, right = "".join(parts[1::2]), tuple(parts[2::2]), _OPTION.match(wanted.strip())
    if len(options) < 2 or not LETTERS.startswith(letters):
        raise BadData(f"no options (A), (B), ... in the question {text[:60]!r}")
    if right is None or right[1] not in letters:
        raise BadData(f"the right option must begin with one of ({'), ('.join(letters)}), not be {wanted[:60]!r}")
    gold = letters.index(right[1])
    return Asked(parts[0], (options[gold],), None, options, gold)


def read_narrativeqa(file: Path) -> list[Item]:
    return _parsed(file, lambda one: _listed(one) if "questions" in one else _narrative_line(one))


def _narrative_line(one: Record) -> Item:
    document, question = _record(one, "document"), _record(one, "question")
    summary = document.get("summary")
    title = _title(summary if isinstance(summary, dict) else document)
    answers = tuple(_text(answer, "text") for answer in _records(one, "answers"))
    return Item(title, _text(document, "text"), (Asked(_text(question, "text"), answers),))


def read_fairytaleqa(file: Path) -> list[Item]:
    return _parsed(file, _fairytale)


def _fairytale(one: Record) -> Item:
    text = "\n\n".join(_text(section, "text") for section in _records(one, "sections"))
    return Item(_text(one, "story"), text, tuple(map(_fairytale_question, _records(one, "questions"))))


def _fairytale_question(one: Record) -> Asked:
    answers = [one.get(f"answer{number}") for number in range(1, 7)]
    given = tuple(answer for answer in answers if isinstance(answer, str) and answer.strip())
    if not given:
        raise BadData("a question without an answer: `answer1` to `answer6` are empty")
    return Asked(_text(one, "question"), given, one.get("local-or-sum"))


def read_jsonl(file: Path) -> list[Item]:
    return _parsed(file, _listed)


def _listed(one: Record) -> Item:
    return Item(_title(one), _text(one, "text" if "text" in one else "document"), _qa(_records(one, "questions")))


def read_counterfact(file: Path) -> list[Item]:
    """The paper's questions are beginnings of statements; asked are those of statements that the slice holds."""
    statements = _rows(file)
    beside = file.with_name("counterfact_eval_qa.json")
    pairs = [(_text(one, "question"), _text(one, "answer")) for _, one in _entries(beside)]
    held = set(statements)
    asked = [Asked(f"Complete the sentence: {begun}", (end,)) for begun, end in pairs if f"{begun} {end}" in held]
    return [Item(file.stem, "\n".join(statements), tuple(asked))]


def read_phonebook(file: Path) -> list[Item]:
    sectors = sorted(file.glob("phonebook_qa_128K_sector_*.csv")) if file.is_dir() else [file]
    if not sectors:
        raise FileNotFoundError(f"{file.name} holds no sectors of the phone book (phonebook_qa_128K_sector_*.csv)")
    return [_phonebook(sector) for sector in sectors]


def _phonebook(file: Path) -> Item:
    from benchmarks.phonebook import parse_row  # with it comes the trainer

    rows = _rows(file)
    asked: list[Asked] = []
    for number, row in enumerate(rows, 2):  # the first line is the header
        try:
            example = parse_row(row)
        except ValueError as error:
            raise BadData(f"{file.name}:{number}: {error}") from error
        asked.append(Asked(example.question, (example.answer,)))
    return Item(file.stem, "\n".join(rows), tuple(asked))


DATA_SETS = {
    "squad": DataSet(read_squad, "squad11/dev_first24titles.json"),
    "quality": DataSet(read_quality, "quality/leval_quality.jsonl"),
    "narrativeqa": DataSet(read_narrativeqa, "q15/la_grande_breteche.json"),
    "fairytaleqa": DataSet(read_fairytaleqa, "fairytaleqa/train.jsonl.gz"),
    "paperqa": DataSet(read_paperqa, "paper/paperqa/paperQA.json", max_tokens=128),
    "counterfact": DataSet(read_counterfact, "paper/counterfact_slices/counterfact_edit_8K.csv", max_tokens=20),
    "phonebook": DataSet(read_phonebook, "paper/phonebook", max_tokens=20),
    "jsonl": DataSet(read_jsonl, "", max_tokens=128),
}


def _parsed(file: Path, parse: Callable[[Record], T]) -> list[T]:
    items = []
    for place, record in _entries(file):
        try:
            items.append(parse(record))
        except BadData as error:
            raise BadData(f"{place}: {error}") from error
    return items


def _entries(file: Path) -> Iterator[tuple[str, Record]]:
    """(where it stands, the object): a line of JSONL, an entry of a JSON list, or all of a JSON object."""
    lines = ".jsonl" in file.suffixes
    for place, value in _lines(file) if lines else _listed_entries(file):
        if not isinstance(value, dict):
            raise BadData(f"{place}: must be a JSON object, not {str(value)[:40]!r}")
        yield place, value


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    with _opened(file) as stream:
        for number, line in enumerate(stream, 1):
            place = f"{file.name}:{number}"
            if line.strip():
                yield place, _json(line, place)


def _listed_entries(file: Path) -> Iterator[tuple[str, Any]]:
    with _opened(file) as stream:
        whole = _json(stream.read(), file.name)
    entries = whole if isinstance(whole, list) else [whole]
    return ((f"{file.name}: entry {number}", entry) for number, entry in enumerate(entries, 1))


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadData(f"{place}: not JSON: {error}") from error


def _opened(file: Path) -> Any:
    return gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8")


def _rows(file: Path) -> list[str]:
    with file.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        if "text" not in (rows.fieldnames or ()):
            raise BadData(f"{file.name}:1: no column `text`")
        return [row["text"] for row in rows]


def _joined(items: Iterable[Item]) -> list[Item]:
    """The same text is one document with all its questions."""
    by_text: dict[str, Item] = {}
    for item in items:
        known = by_text.get(item.text)
        by_text[item.text] = replace(known, questions=known.questions + item.questions) if known else item
    return list(by_text.values())


def _qa(pairs: Sequence[Record]) -> tuple[Asked, ...]:
    return tuple(_pair(one) for one in pairs)


def _pair(one: Record) -> Asked:
    answers = _texts(one, "answers") if "answers" in one else [_text(one, "answer")]
    if not answers:
        raise BadData("a question without an answer: `answers` is empty")
    level = one.get("level")
    return Asked(_text(one, "question"), tuple(answers), None if level is None else str(level))


def _title(one: Record) -> str:
    """Its own, else the first words of its text."""
    title = one.get("title")
    if isinstance(title, str) and title.strip():
        return title.strip()
    text = next((one[name] for name in ("text", "document", "article", "input") if isinstance(one.get(name), str)), "")
    return " ".join(text.split()[:UNTITLED_WORDS])


def _text(one: Record, name: str) -> str:
    value = one.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadData(f"`{name}` must be text, not {value!r:.60}")
    return value


def _texts(one: Record, name: str) -> list[str]:
    values = one.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
        raise BadData(f"`{name}` must be a list of texts, not {values!r:.60}")
    return values


def _record(one: Record, name: str) -> Record:
    value = one.get(name)
    if not isinstance(value, dict):
        raise BadData(f"`{name}` must be an object, not {value!r:.60}")
    return value


def _records(one: Record, name: str) -> list[Record]:
    values = one.get(name)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise BadData(f"`{name}` must be a list of objects, not {values!r:.60}")
    return values
