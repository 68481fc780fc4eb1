"""How well a running loramem server answers from what it was given, by method, on public or your own question sets.

    python -m benchmarks.recall --dataset squad --documents 20 --questions-per-document 5 --methods base,rag,lora
                                --json [--smoke] [--url http://127.0.0.1:8000] [--data FILE] [--seeds 0 1 2]
                                [--unanswerable N] [--namespace NAME] [--out FILE [--resume]] [--keep] [--max-tokens N]
                                [--max-seconds S] [--judge-url URL --judge-model NAME] [--check 'lora.f1>=0.6*rag.f1']

Documents and their questions are drawn with the seed and uploaded as text alone, each seed into a namespace of its own;
questions are asked in random order, for each the methods in random order, greedily. Methods are in
`benchmarks.recall_methods` (`table2` are the rows of the paper's Table 2), question sets in `benchmarks.datasets`,
scores in `benchmarks.answer_scores`. Intervals are 95 % bootstraps that redraw whole documents; `minus` has paired
differences to rag, lora, lora-top3 and lora:oracle, where these are asked.

`router_first` is how often the right document is the first of those an answer is from, `router_inside` how often it is
among them; for text in the prompt these are the documents that the text is from. `text_cut`, of methods that read whole
documents, is the share of questions for which the window held only the beginning. `misrouted` has the differences to
lora on the questions whose first adapter is of a wrong document, where lora is asked. A method that the server refuses
(HTTP status 422) is `refused`, with the reason, and the run fails.

Method `auto` may say that nothing stored is about a question: `refused_answerable` is how often it does so where a
document has the answer. With `--unanswerable N` it is also asked N questions, drawn with the seed, of documents that
share no title with the draw's: `refused_unanswerable`, and counted in nothing else.

With `--out FILE` every answer goes at once to `FILE` with the suffix .jsonl, and `--resume` goes on with what is there.
Documents in `--namespace` that have the same text are used as they are, not learnt again. At the end the documents that
this run has put there are deleted, unless `--keep`; so are those of a run that breaks off without `--out`.
A judge's key is taken from LORAMEM_JUDGE_API_KEY.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx

from benchmarks.answer_scores import CHOICE_METRICS, TEXT_METRICS
from benchmarks.circumstances import check, circumstances, served_model
from benchmarks.datasets import DATA_SETS, BadData
from benchmarks.judge import Judge
from benchmarks.option_types import at_least_one
from benchmarks.passages import ASKED_AT_ONCE, follow
from benchmarks.recall_ask import Learnt, ask_all, bar
from benchmarks.recall_journal import Journal, Line, key_of
from benchmarks.recall_methods import GROUPS, Corpus, Method, chosen_methods
from benchmarks.recall_plan import Plan, draw_plan, joined, smoke_plan, steps
from benchmarks.recall_smoke import SMOKE_METHODS
from benchmarks.recall_summary import (
    COST,
    CUT,
    REFUSING,
    ROUTING,
    UNANSWERABLE,
    Bound,
    checks,
    parse_bound,
    summary,
    table,
)
from loramem.client import Client
from loramem.lines import tidy

Connect = Callable[[str], Client]
"""A client of one namespace."""


def main(
    arguments: Sequence[str] | None = None,
    transport: httpx.BaseTransport | None = None,
    judge_transport: httpx.BaseTransport | None = None,
) -> int:
    """Exit status 1 when a check fails. The transports stand in for the network in tests."""
    options, plan = _options(arguments)

    def connect(namespace: str) -> Client:
        return Client(options.url, api_key=options.api_key, namespace=namespace, transport=transport)

    model = served_model(options.url, options.api_key, transport)
    settings = plan.settings | {"model": model, "namespace": options.namespace}
    journal = Journal(_journal_file(options.out), settings, f"recall-{uuid4().hex[:8]}")
    try:
        run(connect, plan, journal, keep=options.keep, resumable=options.out is not None)
        if options.judge_url:
            with Judge(options.judge_url, options.judge_model, judge_transport) as judge:
                judge_all(judge, plan, journal)
    finally:
        journal.close()
    report = report_of(plan, journal, options.check)
    report |= circumstances(_command(options), options.seeds[0])
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report) if options.json else table(report["methods"]))
    return 0 if all(one["ok"] for one in report["checks"]) else 1


def run(connect: Connect, plan: Plan, journal: Journal, *, keep: bool, resumable: bool) -> None:
    """Learn and ask what the journal does not hold yet. A method that was refused is not tried again."""
    for seed, items in plan.draws.items():
        methods = [method for method in plan.methods if method.name not in journal.refused]
        every = steps(seed, items, methods, plan.unanswerable.get(seed, ()))
        todo = [step for step in every if step.key not in journal.answers]
        if todo:
            needed = {step.method.corpus for step in todo}
            with learnt(connect, plan, journal, seed, needed, keep=keep, resumable=resumable) as corpora:
                ask_all(corpora, journal, todo, plan.max_tokens)


@contextmanager
def learnt(
    connect: Connect, plan: Plan, journal: Journal, seed: int, needed: set[Corpus], *, keep: bool, resumable: bool
) -> Iterator[dict[Corpus, Learnt]]:
    """The draw on the server, live. What this run has put there goes at the end, unless it is kept or goes on later."""
    corpora: dict[Corpus, Learnt] = {}
    finished = False
    try:
        for corpus in sorted(needed):
            client = connect(_namespace(plan, journal, seed, corpus))
            corpora[corpus] = Learnt(client, {})
            learn(corpora[corpus], plan, journal, seed, corpus)
        yield corpora
        finished = True
    finally:
        for corpus, one in corpora.items():
            if not keep and (finished or not resumable):
                for document in journal.created(_namespace(plan, journal, seed, corpus)):
                    one.client.delete(document)
            one.client.close()


def _namespace(plan: Plan, journal: Journal, seed: int, corpus: Corpus) -> str:
    parts = [journal.settings["namespace"]]
    parts += [str(seed)] if len(plan.draws) > 1 else []
    parts += [corpus] if corpus != "chunk" else []
    return "-".join(parts)


def learn(corpus: Learnt, plan: Plan, journal: Journal, seed: int, kind: Corpus) -> None:
    """Upload all, then wait for each. Raises `NotLearnt`."""
    started = time.monotonic()
    texts = [joined(plan.draws[seed])] if kind == "joined" else plan.draws[seed]
    training = plan.training | ASKED_AT_ONCE | ({} if kind == "chunk" else {"per": "document"})
    namespace, waiting = _namespace(plan, journal, seed, kind), []
    for drawn in texts:
        accepted = corpus.client.upload(
            drawn.item.text, title=drawn.item.title[:500], external_id=drawn.key, training=training
        )
        document, created = accepted["document"], accepted["created"]
        corpus.ids[drawn.key] = document["id"]
        corpus.lengths[document["id"]] = len(tidy(drawn.item.text))  # the server's offsets are into the tidied text
        line = {"namespace": namespace, "document": drawn.key, "id": document["id"], "created": created}
        journal.add("document", line)
        if created or document["state"] != "live":
            waiting.append(accepted["job"]["id"])
    for job in bar(waiting, f"learning, {kind}"):
        follow(corpus.client, job)
    journal.add("learnt", {"namespace": namespace, "waited_for": len(waiting), "seconds": _since(started)})


def _since(started: float) -> float:
    return round(time.monotonic() - started, 1)


def judge_all(judge: Judge, plan: Plan, journal: Journal) -> None:
    """Every scored answer without a judgement yet. Raises `NoJudgement`; what was judged so far is in the journal."""
    names = {method.name for method in plan.methods}
    waiting = [line for key, line in journal.answers.items() if line["scores"] and key not in journal.judgements]
    lines = [line for line in waiting if line["method"] in names]
    for line in bar(lines, "judging"):
        opinion = judge.judge(line["question"], line["references"], line["answer"])
        place = {name: line[name] for name in ("seed", "document", "question_number", "method")}
        journal.add("judgement", place | {"score": opinion.score, "reason": opinion.reason})


def report_of(plan: Plan, journal: Journal, bounds: Sequence[Bound]) -> Line:
    """Settings, figures by method, checks. No path: files by their names."""
    answers = [_judged(journal.answers[key], journal) for key in sorted(journal.answers)]
    names = [method.name for method in plan.methods]
    figures = summary(answers, names, journal.refused, next(iter(plan.draws)))
    learning = [{name: line[name] for name in ("namespace", "waited_for", "seconds")} for line in journal.learnt]
    settings = journal.settings
    answered = sum(figures.get(name, {}).get("state") == "done" for name in names)
    promised = [check("methods that were answered", answered, f"= {len(names)}", answered == len(names))]
    promised += checks(bounds, figures)
    return {"settings": settings, "learnt": learning, "methods": figures, "checks": promised}


def _judged(line: Line, journal: Journal) -> Line:
    opinion = journal.judgements.get(key_of(line))
    return line | {"scores": line["scores"] | {"judge": float(opinion["score"])}} if opinion else line


def _journal_file(out: Path | None) -> Path | None:
    return out.with_suffix(".jsonl") if out else None


def _command(options: argparse.Namespace) -> str:
    """What repeats the run; files by their names, no address, no key."""
    what = f"--dataset {options.dataset} --documents {options.documents}"
    what += f" --questions-per-document {options.questions_per_document}" if options.questions_per_document else ""
    what = "--smoke" if options.smoke else what
    what += f" --methods {','.join(options.methods)} --seeds {' '.join(map(str, options.seeds))}"
    what += f" --data {options.data.name}" if options.data else ""
    what += f" --unanswerable {options.unanswerable}" if options.unanswerable else ""
    what += f" --max-tokens {options.max_tokens}" if options.max_tokens else ""
    what += f" --max-seconds {options.max_seconds:g}" if options.max_seconds else ""
    what += f" --formats {options.formats}" if options.formats else ""
    what += f" --judge-model {options.judge_model}" if options.judge_url else ""
    what += "".join(f" --check '{bound.text}'" for bound in options.check)
    return f"python -m benchmarks.recall --json {what}"


def _options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Plan]:
    parser = _parser()
    options = parser.parse_args(arguments)
    options.methods = options.methods or (list(SMOKE_METHODS) if options.smoke else ["table2"])
    if bool(options.judge_url) != bool(options.judge_model):
        parser.error("--judge-url and --judge-model go together")
    if options.resume and not options.out:
        parser.error("--resume needs --out")
    if options.out and options.out.suffix == ".jsonl":
        parser.error("--out is the JSON of the figures; answers go beside it, with the suffix .jsonl")
    if options.out and not options.resume and (options.out.exists() or options.out.with_suffix(".jsonl").exists()):
        parser.error(f"{options.out} or its .jsonl exists: add --resume, or name another file")
    try:
        options.check = [parse_bound(text) for text in options.check]
        plan = _plan(options)
        _check_bounds(options, plan)
    except (BadData, OSError, ValueError) as error:
        parser.error(str(error))
    options.documents = min(options.documents, *map(len, plan.draws.values()))
    return options, plan


def _plan(options: argparse.Namespace) -> Plan:
    methods = chosen_methods(options.methods)
    if options.unanswerable and not any(method.takes_unanswerable for method in methods):
        raise ValueError("--unanswerable asks methods that may refuse to answer, and none is chosen: add auto")
    if options.smoke:
        return smoke_plan(options.seeds[0], methods, options.unanswerable)
    return draw_plan(
        options.dataset,
        options.data,
        options.seeds,
        methods,
        documents=options.documents,
        questions=options.questions_per_document,
        max_tokens=options.max_tokens,
        max_seconds=options.max_seconds,
        formats=options.formats,
        unanswerable=options.unanswerable,
    )


def _check_bounds(options: argparse.Namespace, plan: Plan) -> None:
    """Raises `ValueError` for a bound on what the run will not measure."""
    asked = [question for items in plan.draws.values() for one in items for question in one.item.questions]
    metrics = TEXT_METRICS if all(one.options is None for one in asked) else CHOICE_METRICS
    judged = ("judge",) if options.judge_url else ()
    shares = {method.name: _shares(method, plan) for method in plan.methods}
    for method, metric in [named for bound in options.check for named in bound.named]:
        known = (*metrics, *judged, *COST, *shares.get(method, ()))
        if method not in shares:
            raise ValueError(f"--check names {method!r}, which is not asked; there are {', '.join(shares)}")
        if metric not in known:
            raise ValueError(f"--check names {metric!r}; {method} has {', '.join(known)}")


def _shares(method: Method, plan: Plan) -> tuple[str, ...]:
    routing, refusing = ROUTING if method.routes else (), REFUSING if method.can_refuse else ()
    cut = CUT if method.whole_text else ()
    return *routing, *refusing, *cut, *((UNANSWERABLE,) if method.takes_unanswerable and plan.unanswerable else ())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.recall", description=__doc__.splitlines()[0] if __doc__ else "")
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000")
    add("--api-key", default=os.environ.get("LORAMEM_API_KEY"))
    add("--dataset", choices=DATA_SETS, default="squad")
    add("--data", type=Path, metavar="FILE", help="your copy of the question set; default: under LORAMEM_BENCH_DATA")
    add("--documents", type=at_least_one, default=20, help="how many are drawn; all where there are fewer")
    add("--questions-per-document", type=at_least_one, metavar="N", help="how many are drawn of each; default: all")
    add("--unanswerable", type=at_least_one, default=0, metavar="N", help="further questions, of documents not drawn")
    add("--methods", type=lambda names: names.split(","), metavar="NAME,...", help=f"names, or {', '.join(GROUPS)}")
    add("--seeds", "--seed", type=int, nargs="+", default=[0], help="of the draws; each is learnt and asked by itself")
    add("--namespace", help="documents there with the same text are used as they are; default: a fresh one")
    add("--max-tokens", type=at_least_one, help="of an answer; default: the question set's")
    add("--max-seconds", type=float, help="of training, per adapter; default: the server's")
    add("--formats", metavar="FORMAT+...", help="kinds of training data, as `qa40+original`; default: the server's")
    add("--judge-url", help="root of an OpenAI-compatible API, as http://127.0.0.1:8001/v1")
    add("--judge-model")
    add("--check", action="append", default=[], metavar="BOUND", help="as 'lora.f1>=0.6*rag.f1'")
    add("--out", type=Path, metavar="FILE", help="the figures as JSON; answers go beside it as they come")
    add("--resume", action="store_true", help="go on with what is beside --out")
    add("--keep", action="store_true", help="leave the documents on the server")
    add("--smoke", action="store_true", help="two short documents of its own, a few seconds of training")
    add("--json", action="store_true", help="one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
