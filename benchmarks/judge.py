"""A language model's opinion on an answer, 0 to 10, by any OpenAI-compatible endpoint.

The scale is that of the paper's PaperQA evaluation, in our words: what the reference says must be there and right; a
short answer that holds it is as good as a long one.
"""

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

KEY_VARIABLE = "LORAMEM_JUDGE_API_KEY"
TRIES = 4
FIRST_WAIT_S = 1.0
RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
MAX_TOKENS = 512
RUBRIC = """You grade an answer to a question against reference answers. Judge what it says, not how.

10   says all that the references say (one of them is enough), nothing wrong
8-9  right, with a minor detail missing or loose
6-7  the main point is right, some of it missing or vague
4-5  partly right: about half of what matters
2-3  touches the subject, but misses what was asked
1    has next to nothing to do with the references
0    wrong, contradicts the references, or empty

Short is no fault. What goes beyond the references costs nothing, unless it contradicts them.
Reply with one JSON object and nothing else: {"reason": "one sentence", "score": whole number from 0 to 10}"""
_OBJECT = re.compile(r"\{.*\}", re.DOTALL)


class NoJudgement(SystemExit):
    """The judge cannot be reached, refuses, or does not keep to the form; what is written so far stays."""


@dataclass(frozen=True)
class Judgement:
    """`score` from 0 to 10."""

    score: int
    reason: str


class Judge:
    """One connection pool. The key, where one is needed, is in LORAMEM_JUDGE_API_KEY."""

    def __init__(
        self,
        url: str,
        model: str,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`url` is the API's root, as `http://127.0.0.1:8001/v1`."""
        key = os.environ.get(KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=120, transport=transport)
        self._model = model
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def judge(self, question: str, references: Sequence[str], answer: str) -> Judgement:
        """Tries again, with growing waits, after a lost connection, an overload, or a reply of another form.

        Raises `NoJudgement`.
        """
        body = {"model": self._model, "messages": _messages(question, references, answer), "temperature": 0}
        reason = ""
        for attempt in range(TRIES):
            if attempt:
                self._sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
            try:
                response = self._http.post("chat/completions", json=body | {"max_tokens": MAX_TOKENS})
            except httpx.TransportError as error:
                reason = f"no answer: {type(error).__name__}: {error}"
                continue
            if response.status_code in RETRIED:
                reason = f"HTTP status {response.status_code}"
                continue
            if response.is_error:
                raise NoJudgement(f"the judge refuses with HTTP status {response.status_code}: {response.text[:300]}")
            try:
                return parse_judgement(_content(response))
            except ValueError as error:
                reason = str(error)
        raise NoJudgement(f"no judgement after {TRIES} tries: {reason}")


def parse_judgement(text: str) -> Judgement:
    """From the JSON object in a reply, alone or in a fence or after words. Raises `ValueError` for another form."""
    found = _OBJECT.search(text)
    if found is None:
        raise ValueError(f"no JSON object in the judge's reply: {text[:200]!r}")
    try:
        given = json.loads(found[0])
    except json.JSONDecodeError as error:
        raise ValueError(f"the judge's reply is not JSON ({error}): {text[:200]!r}") from error
    score = given.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 10 or score != int(score):
        raise ValueError(f"`score` must be a whole number from 0 to 10, not {score!r}")
    return Judgement(int(score), str(given.get("reason", "")))


def _content(response: httpx.Response) -> str:
    try:
        content: Any = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"not a chat completion: {response.text[:200]!r}") from error
    return content if isinstance(content, str) else ""


def _messages(question: str, references: Sequence[str], answer: str) -> list[dict[str, str]]:
    asked = {"question": question, "references": list(references), "answer": answer}
    return [{"role": "system", "content": RUBRIC}, {"role": "user", "content": json.dumps(asked, ensure_ascii=False)}]
