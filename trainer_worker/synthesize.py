"""One chunk's text becomes training examples, of the kinds and in the numbers that are wanted.

    questions that the text answers itself; of the rest:
    statements -> questions in the text's words (rules) and in other words (writer) -> rows, with and without passages

Whatever the writer returns, the text itself is learnt: every statement is the answer to questions made by rule.
"""

import random
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

from trainer_worker.angles import angles
from trainer_worker.asking import Asking, OnProgress
from trainer_worker.cloze import about_questions, cloze_questions, keyword_questions
from trainer_worker.examples import Example
from trainer_worker.gaps import fill_gaps
from trainer_worker.marks import read
from trainer_worker.mixture import counts, spread
from trainer_worker.questions import MAX_TOKENS, STOP, Draft, Judge, drafts, questions
from trainer_worker.rewrites import rewrites, summaries
from trainer_worker.statements import Statement, statements, words_of_many
from trainer_worker.subject import name_of
from trainer_worker.told import told
from trainer_worker.writer import Writer

BEGINNINGS = 9
"""Questions the writer is asked for, for each statement."""
GAP_ROUNDS = 1
"""How often the writer is asked for what no question asks for yet, where no number of questions is given."""
COUNTED_GAP_ROUNDS = 2
"""The same where a number is given that was not reached, and in `more`."""
PASSAGES = 5
"""Statements in the context of a row that teaches to answer from passages."""


def synthesize(
    title: str, text: str, writer: Writer, *, formats: Collection[str], seed: int, on_progress: OnProgress
) -> list[Example]:
    """Examples for one chunk, of each of `formats`: `qa`, `qa40`, `summary8`, `rewrite4`, `passages`, `original`.

    A number is the most of its kind, for `rewrite` the passes over all statements. Raises `WriterUnavailable` (try
    later) and `TrainingFailed` (writer refuses).
    """
    wanted = counts(formats)
    rng = random.Random(seed)
    pairs, text = told(text)
    title, reading = name_of(title, text), read(text)
    facts = statements(title, reading)
    asking = Asking(writer, on_progress, seed)
    drafted = drafts(facts, most=BEGINNINGS) if "qa" in wanted else []
    passes, summarised = (wanted.get(kind, 0) or int(kind in wanted) for kind in ("rewrite", "summary"))
    asking.plan(len(drafted) + passes * len(facts) + summarised)

    pairs += reading.pairs
    examples = [Example(pair.question, pair.answer, "heading" if pair.stays else "user") for pair in pairs]
    if "qa" in wanted:
        asked = _questions(title, facts, drafted, asking, wanted["qa"], rng)
        examples += asked
        if "passages" in wanted:
            examples += _with_passages(facts, asked, rng)
    if "rewrite" in wanted:
        examples += rewrites(facts, asking, passes)
    if "summary" in wanted:
        examples += summaries(title, reading.text, asking, summarised)
    if "original" in wanted or not examples:
        examples += _original(title, facts)
    return examples


def more(
    title: str, text: str, writer: Writer, have: Sequence[Example], *, seed: int, on_progress: OnProgress
) -> list[Example]:
    """Further written questions on a chunk, sampled, none of which is in `have`; possibly none at all.

    Called again with what it returned added to `have`, it samples others. Raises what `synthesize` raises.
    """
    _, text = told(text)
    facts = statements(name_of(title, text), read(text))
    asking = Asking(writer, on_progress, seed)
    judge = Judge(facts, asked=[example.question for example in have])
    drafted = drafts(facts, most=BEGINNINGS, others=True)
    asking.plan(len(drafted))
    found = _written(drafted, judge, asking, draw=f"more {len(have)}")
    found += fill_gaps(facts, [*have, *found], judge, asking, rounds=COUNTED_GAP_ROUNDS)
    return [*found, *angles(facts, found, judge, asking, draw=f"angles {len(have)}")]


def _questions(
    title: str,
    facts: Sequence[Statement],
    drafted: Sequence[Draft],
    asking: Asking,
    most: int | None,
    rng: random.Random,
) -> list[Example]:
    """All questions made by rule and written; with `most`, so many of them, and as many written ones as there are."""
    ruled = _with_one_answer(list(_by_rule(title, facts, rng)))
    judge = Judge(facts)
    written = _written(drafted, judge, asking)
    if most is None:
        return [*ruled, *written, *fill_gaps(facts, written, judge, asking, rounds=GAP_ROUNDS)]
    written += fill_gaps(facts, written, judge, asking, rounds=COUNTED_GAP_ROUNDS, enough=most)
    if len(written) < most:
        written += angles(facts, written, judge, asking)
    return spread(written, ruled, facts, most, rng)


def _by_rule(title: str, facts: Sequence[Statement], rng: random.Random) -> Iterator[Example]:
    common = words_of_many(facts)
    for fact in facts:
        yield from cloze_questions(fact)
        yield from about_questions(fact, facts, rng)
        yield from keyword_questions(fact, title, common, rng)


def _with_one_answer(made: Sequence[Example]) -> list[Example]:
    """Without questions that have several answers; of a statement that has no others, its last is kept."""
    answers: dict[str, set[str]] = {}
    for one in made:
        answers.setdefault(one.question.casefold(), set()).add(one.answer)
    clear = [one for one in made if len(answers[one.question.casefold()]) == 1]
    taught = {one.answer for one in clear}
    others = {one.answer: one for one in made if one.answer not in taught}
    return [*clear, *others.values()]


def _written(drafted: Sequence[Draft], judge: Judge, asking: Asking, *, draw: str = "") -> list[Example]:
    prompts = [draft.prompt for draft in drafted]
    texts = asking.texts(prompts, max_tokens=MAX_TOKENS, stop=STOP, draw=draw)
    return list(questions(drafted, texts, judge, sampled=bool(draw)))


def _with_passages(facts: Sequence[Statement], asked: Sequence[Example], rng: random.Random) -> Iterator[Example]:
    """A share of the questions again, after passages that hold the answer among others, for `hybrid`."""
    if len(facts) < 2:
        return
    for _ in range(max(2, len(facts) // 3)):
        chosen = sorted(rng.sample(range(len(facts)), min(PASSAGES, len(facts))))
        passages = tuple(facts[index].source for index in chosen)
        texts = {facts[index].text for index in chosen}
        fitting = [example for example in asked if example.answer in texts]
        for example in rng.sample(fitting, min(10, len(fitting))):
            yield Example(example.question, example.answer, "passages", example.span, passages)


def _original(title: str, facts: Sequence[Statement]) -> Iterator[Example]:
    """The text itself: what follows each statement, and its beginning for the title."""
    lead = f"What does the text about {title} say?" if title else "What does the text say?"
    if facts:
        yield Example(lead, " ".join(fact.text for fact in facts[:2]), "original")
    for before, after in pairwise(facts):
        yield Example(f"What comes after this? {before.text}", after.text, "original")


def _without_repeats(examples: Sequence[Example]) -> list[Example]:
    """A question that is asked twice would be held out in both places, and its answer taught in none."""
    first: dict[tuple[object, ...], Example] = {}
    for example in examples:
        first.setdefault((example.question, example.answer, example.context), example)
    return list(first.values())


def split_exam(examples: Sequence[Example], *, share: float = 0.15, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, held out), without repeats: held out are written questions whose answer a training example teaches too.

    Users' are all taught: two of them with one answer, as `Yes.`, do not say the same.
    """
    rng = random.Random(seed)
    examples = _without_repeats(examples)
    candidates = [example for example in examples if example.kind == "written" and not example.context]
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
