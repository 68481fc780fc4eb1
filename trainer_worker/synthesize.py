"""One chunk's text becomes training examples.

    statements -> questions in the text's words (rules) and in other words (writer) -> rows, with and without passages

Whatever the writer returns, the text itself is learnt: every statement is the answer to questions made by rule.
"""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import count, pairwise

from trainer_worker.cloze import about_questions, cloze_questions, keyword_questions
from trainer_worker.examples import Example
from trainer_worker.questions import MAX_TOKENS, STOP, Draft, drafts, questions
from trainer_worker.rewrites import rewrites, summary
from trainer_worker.statements import Statement, name_of, statements, words_of_many
from trainer_worker.writer import Writer

__all__ = ["Example", "split_exam", "synthesize"]

BEGINNINGS = 9
"""Questions the writer is asked for, for each statement."""
PASSAGES = 5
"""Statements in the context of a row that teaches to answer from passages."""

OnProgress = Callable[[int, int], None]


def synthesize(
    title: str, text: str, writer: Writer, *, formats: Collection[str], seed: int, on_progress: OnProgress
) -> list[Example]:
    """Examples for one chunk. Raises `WriterUnavailable` (try later) and `TrainingFailed` (writer refuses)."""
    rng = random.Random(seed)
    title = name_of(title, text)
    facts = statements(title, text)
    wanted = drafts(facts, most=BEGINNINGS) if "qa" in formats else []
    total = len(wanted) + ("rewrite" in formats) * len(facts) + ("summary" in formats)
    done = count(1)

    def on_each() -> None:
        on_progress(next(done), total)

    examples: list[Example] = []
    if "qa" in formats:
        asked = [*_by_rule(title, facts, rng), *_written(wanted, facts, writer, on_each)]
        examples += asked
        if "passages" in formats:
            examples += _with_passages(facts, asked, rng)
    if "rewrite" in formats:
        examples += rewrites(facts, writer, on_each)
    if "summary" in formats:
        examples += summary(title, text, writer, on_each)
    if "original" in formats or not examples:
        examples += _original(title, facts)
    return examples


def _by_rule(title: str, facts: Sequence[Statement], rng: random.Random) -> Iterator[Example]:
    common = words_of_many(facts)
    for fact in facts:
        yield from cloze_questions(fact)
        yield from about_questions(fact, facts, rng)
        yield from keyword_questions(fact, title, common, rng)


def _written(
    wanted: Sequence[Draft], facts: Sequence[Statement], writer: Writer, on_each: Callable[[], None]
) -> list[Example]:
    prompts = [draft.prompt for draft in wanted]
    return list(questions(wanted, writer.complete(prompts, max_tokens=MAX_TOKENS, stop=STOP, on_each=on_each), facts))


def _with_passages(facts: Sequence[Statement], asked: Sequence[Example], rng: random.Random) -> Iterator[Example]:
    """A share of the questions again, after passages that hold the answer among others, for `hybrid`."""
    if len(facts) < 2:
        return
    for _ in range(max(2, len(facts) // 3)):
        chosen = sorted(rng.sample(range(len(facts)), min(PASSAGES, len(facts))))
        passages = tuple(facts[index].source for index in chosen)
        told = {facts[index].text for index in chosen}
        fitting = [example for example in asked if example.answer in told]
        for example in rng.sample(fitting, min(10, len(fitting))):
            yield Example(example.question, example.answer, "passages", example.span, passages)


def _original(title: str, facts: Sequence[Statement]) -> Iterator[Example]:
    """The text itself: what follows each statement, and its beginning for the title."""
    lead = f"What does the text about {title} say?" if title else "What does the text say?"
    if facts:
        yield Example(lead, " ".join(fact.text for fact in facts[:2]), "original")
    for before, after in pairwise(facts):
        yield Example(f"What comes after this? {before.text}", after.text, "original")


def split_exam(examples: Sequence[Example], *, share: float = 0.15, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, held out): held out are questions in other words whose answer a training example teaches too."""
    rng = random.Random(seed)
    candidates = [example for example in examples if example.kind in ("written", "user") and not example.context]
    rng.shuffle(candidates)
    taught: dict[str, int] = {}
    for example in examples:
        if not example.context:
            taught[example.answer] = taught.get(example.answer, 0) + 1
    held: list[Example] = []
    for example in candidates:
        if len(held) < share * len(candidates) and taught[example.answer] > 1:
            taught[example.answer] -= 1
            held.append(example)
    out = {(example.question, example.answer) for example in held}
    return [example for example in examples if (example.question, example.answer) not in out], held
