"""The parts of walkthrough.sh that read JSON. Plain Python 3, nothing to install.

walkthrough_steps.py questions FILE [QUESTION...]   one JSON object a line
walkthrough_steps.py body MODE NAMESPACE QUESTION_JSON [stream]   the body of POST /query
walkthrough_steps.py field KEY[.KEY]                of the JSON object on stdin
walkthrough_steps.py progress                       server-sent events on stdin; exit status 0 once the job has ended
walkthrough_steps.py report FOLDER DOCUMENT MODE... the table, the scores and the checks
walkthrough_steps.py stream FILE                    checks a streamed answer
"""

from __future__ import annotations

import json
import statistics
import sys
import textwrap
from pathlib import Path
from typing import Any

MAX_WORDS = 30
FINAL_STATES = ("succeeded", "failed", "cancelled", "dead")


def check(what: str, ok: bool) -> bool:
    print(f"{'ok    ' if ok else 'FAILED'} {what}")
    return ok


def questions(file: str, *given: str) -> bool:
    found: list[dict[str, str]] = [{"question": question} for question in given]
    beside = [path for path in (Path(file).with_suffix(".json"), Path(f"{file}.json")) if path.exists()]
    if beside and not given and beside[0] != Path(file):
        listed = json.loads(beside[0].read_text(encoding="utf-8"))
        found = listed["questions"] if isinstance(listed, dict) else listed
    for item in found:
        print(json.dumps(item))
    return bool(found)


def body(mode: str, namespace: str, question: str, stream: str = "") -> bool:
    asked = {"question": json.loads(question)["question"], "mode": mode, "namespace": namespace}
    print(json.dumps({**asked, "stream": True} if stream else asked))
    return True


def field(key: str) -> bool:
    value = json.load(sys.stdin)
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    print(value if isinstance(value, str) else "" if value is None else json.dumps(value))
    return value is not None


def progress() -> bool:
    live, last = sys.stderr.isatty(), ""
    for line in sys.stdin:
        if not line.startswith("data:"):
            continue
        event = json.loads(line[5:])
        text = f"  {_progress(event)}"
        if text.strip() and text != last:
            sys.stderr.write(f"\r\033[K{text}" if live else f"{text}\n")
            sys.stderr.flush()
            last = text
        if event.get("state") in FINAL_STATES:
            sys.stderr.write("\n" if live else "")
            return True
    return False


def _progress(event: dict[str, Any]) -> str:
    shown = event.get("progress") or event
    parts = [shown.get("phase") or "", event.get("state") or ""]
    if shown.get("percent") is not None:
        parts.insert(0, f"{shown['percent']:5.1f} %")
    if shown.get("total_steps"):
        parts.append(f"step {shown['step']} of {shown['total_steps']}")
    if shown.get("loss") is not None:
        parts.append(f"loss {shown['loss']:.3f}")
    if shown.get("eta_s"):
        parts.append(f"about {shown['eta_s']:.0f} s left")
    return "  ".join(part for part in parts if part)


class Answer:
    """One reply to `POST /query`, as curl left it: the body, and its HTTP status in a file beside it."""

    def __init__(self, path: Path, expected: str) -> None:
        self.status = Path(f"{path}.status").read_text()
        try:
            self.reply: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            self.reply = {"detail": "the reply is not JSON"}
        self.text = " ".join(str(self.reply.get("answer") or "").split())
        self.routed: list[dict[str, Any]] = self.reply.get("routed") or []
        self.times: dict[str, float] = self.reply.get("timings_ms") or {}
        self.expected = expected

    @property
    def is_given(self) -> bool:
        return self.status == "200" and bool(self.text)

    @property
    def is_right(self) -> bool:
        found = bool(self.expected) and self.expected.casefold() in self.text.casefold()
        return found and len(self.text.split()) <= MAX_WORDS

    def row(self, mode: str) -> str:
        mark = " " if not self.expected else "+" if self.is_right else "-"
        text = textwrap.shorten(self.text or self.trouble, 64, placeholder=" ...")
        route = ", ".join(f"{hit.get('title') or hit['document_id']} {hit['score']:.2f}" for hit in self.routed)
        times = "".join(f"{self.times[key]:>8.0f}" if key in self.times else " " * 8 for key in ("ttft", "total"))
        return f"   {mark} {mode:<7}{text:<65}{route[:32]:<33}{times}"

    @property
    def trouble(self) -> str:
        return f"HTTP {self.status}: {self.reply.get('detail') or 'empty answer'}"


def report(folder: str, document: str, *modes: str) -> bool:
    asked = [json.loads(line) for line in (Path(folder) / "questions").read_text(encoding="utf-8").splitlines()]
    answers = {
        mode: [
            Answer(Path(folder) / f"answer.{number}.{mode}", item.get("expected") or "")
            for number, item in enumerate(asked)
        ]
        for mode in modes
    }
    head = f"     {'mode':<7}{'answer (+ right, - wrong)':<65}{'routed to':<33}{'ttft ms':>8}{'total':>8}"
    print(f"\n{head}")
    for number, item in enumerate(asked):
        expected = f"   [{item['expected']}]" if item.get("expected") else ""
        print(f"{number + 1:>2}. {item['question']}{expected}")
        for mode in modes:
            print(answers[mode][number].row(mode))
    scored = any(item.get("expected") for item in asked)
    _summary(answers, scored)
    return _checks(answers, document, scored)


def _summary(answers: dict[str, list[Answer]], scored: bool) -> None:
    print()
    for mode, given in answers.items():
        right = f"{sum(answer.is_right for answer in given):>3} of {len(given)} right, " if scored else ""
        print(f"   {mode:<7}{right}median {statistics.median(answer.times.get('total', 0) for answer in given):.0f} ms")
    print()


def _checks(answers: dict[str, list[Answer]], document: str, scored: bool) -> bool:
    missing = [
        f"{mode}: {answer.trouble}" for mode, given in answers.items() for answer in given if not answer.is_given
    ]
    lora = answers["lora"]
    routed = sum(bool(answer.routed) and answer.routed[0]["document_id"] == document for answer in lora)
    results = [
        check("every mode answered every question" + "".join(f"\n         {line}" for line in missing), not missing),
        check(f"lora was routed to the document {routed} times of {len(lora)}", routed >= 0.9 * len(lora)),
    ]
    if scored:
        knows, guesses = (sum(answer.is_right for answer in answers[mode]) for mode in ("lora", "base"))
        results.append(check(f"lora knows more than base: {knows} against {guesses}", knows > guesses))
    return all(results)


def stream(file: str) -> bool:
    kinds, text = [], ""
    for line in Path(file).read_text(encoding="utf-8").split("\n"):
        if line.startswith("event:"):
            kinds.append(line[6:].strip())
        elif line.startswith("data:") and kinds[-1:] == ["token"]:
            text += json.loads(line[5:])["text"]
    ok = kinds[:1] == ["route"] and kinds[-1:] == ["done"] and bool(text.strip())
    tokens = kinds.count("token")
    return check(f"streaming: {tokens} tokens between route and done" if ok else f"streaming gave {kinds}", ok)


COMMANDS = (questions, body, field, progress, report, stream)

if __name__ == "__main__":
    command = next((each for each in COMMANDS if each.__name__ == sys.argv[1]), None)
    if command is None:
        sys.exit(__doc__)
    sys.exit(not command(*sys.argv[2:]))
