"""The vector index with a million vectors: how long a search, a change and a restart take, and how much is found.

    python -m benchmarks.vector_scale --json [--smoke] [--count 1000000] [--sentences 20000] [--questions 300]
                                      [--out FILE] [--seed 0]

Works on `loramem.vector_set` alone: no database, no HTTP. Vectors are synthetic: up to `--sentences` real sentences of
SQuAD and FairytaleQA, embedded by MiniLM, and for the rest mixtures of two of them (0.5 to 1 of the one) with noise.
The questions asked are real ones of the same texts, not in the index. Without the data, or with `--sentences 0`, all
is drawn around random centres. Vectors stand in documents of twenty, in random order, and recall is against an exact
search of the same vectors. "Fresh" is an index that was just made; "behind" one with as much in its delta as it takes
before it is made anew, and as many dead. Data is looked for in LORAMEM_BENCH_DATA, else `shared/data` beside the
repository.
"""

import argparse
import gzip
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.circumstances import check, circumstances, command_of
from benchmarks.passages import DATA, read_passages
from loramem import vector_lists, vector_set
from loramem.vector_set import Group, VectorSet
from loramem.vector_state import IndexState, Snapshots

DIM = 384
PER_DOCUMENT = 20
LIMIT = 64
"""Windows that the router asks for at least."""
COMPARED = 10
NOISE = 0.02
"""Standard deviation of each component; its norm is 0.4 beside the mixture's of about 0.8."""
CENTRES = 2000
BLOCK = 50_000
P99_MS = 25.0
RECALL = 0.98

Vectors = NDArray[np.float32]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a check fails."""
    parser = _parser()
    options = parser.parse_args(arguments)
    command = command_of(parser, options)
    if options.smoke:
        options.count, options.sentences, options.questions = 20_000, min(options.sentences, 400), 50
    random_state = np.random.default_rng(options.seed)
    base, asked, origin = real_vectors(options) if options.sentences else random_centres(options, random_state)
    vectors = spread(base, options.count, random_state)
    report: dict[str, Any] = {"vectors": options.count, "dim": DIM, "made_from": origin}
    report |= measure(vectors, asked, random_state)
    report |= circumstances(command, options.seed)
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report) if options.json else json.dumps(report, indent=2))
    return 0 if all(one["ok"] for one in report["checks"]) else 1


def real_vectors(options: argparse.Namespace) -> tuple[Vectors, Vectors, str]:
    """Sentences and questions as unit vectors, and what they are; random centres when there is no data."""
    from loramem.embed import load_embedder
    from loramem.settings import Settings

    try:
        sentences, questions = read_texts(options.data)
    except OSError as error:
        print(f"no data, taking random centres: {error}", file=sys.stderr)
        return random_centres(options, np.random.default_rng(options.seed))
    chosen = random.Random(options.seed)
    sentences = chosen.sample(sentences, min(options.sentences, len(sentences)))
    questions = chosen.sample(questions, min(options.questions, len(questions)))
    embedder = load_embedder(Settings(), device="cpu")
    origin = f"{len(sentences)} sentences of SQuAD and FairytaleQA by {embedder.name}, the rest mixtures of two + noise"
    return embedder.embed(sentences), embedder.embed(questions), origin


def read_texts(data: Path) -> tuple[list[str], list[str]]:
    """Distinct sentences and questions. Raises `OSError` when the data is not there."""
    passages = read_passages(data)
    texts = [passage.context for passage in passages]
    questions = {asked["question"] for passage in passages for asked in passage.questions}
    with gzip.open(data / "fairytaleqa" / "train.jsonl.gz", "rt") as lines:
        for story in map(json.loads, lines):
            texts += [section["text"] for section in story["sections"]]
            questions |= {asked["question"] for asked in story["questions"]}
    sentences = {sentence.strip() for text in texts for sentence in re.split(r"(?<=[.!?])\s+", text)}
    return sorted(sentence for sentence in sentences if len(sentence) > 20), sorted(questions)


def random_centres(options: argparse.Namespace, random_state: np.random.Generator) -> tuple[Vectors, Vectors, str]:
    base = unit(random_state.standard_normal((CENTRES, DIM), dtype=np.float32))
    return base, spread(base, CENTRES + options.questions, random_state)[-options.questions :], "random centres"


def spread(base: Vectors, count: int, random_state: np.random.Generator) -> Vectors:
    """`base` and mixtures of two of them with noise, shuffled, shape (count, dim)."""
    vectors = np.empty((count, DIM), dtype=np.float32)
    kept = min(count, len(base))
    vectors[:kept] = base[:kept]
    for start in range(kept, count, BLOCK):
        size = min(BLOCK, count - start)
        one, other = random_state.integers(0, len(base), (2, size))
        share = 0.5 + 0.5 * random_state.random((size, 1), dtype=np.float32)
        noise = NOISE * random_state.standard_normal((size, DIM), dtype=np.float32)
        vectors[start : start + size] = unit(share * base[one] + (1 - share) * base[other] + noise)
    random_state.shuffle(vectors)
    return vectors


def unit(vectors: Vectors) -> Vectors:
    scaled: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def measure(vectors: Vectors, asked: Vectors, random_state: np.random.Generator) -> dict[str, Any]:
    """All figures; `vectors` are changed as the index is."""
    groups = documents(range(len(vectors) // PER_DOCUMENT))
    vectors = vectors[: len(groups) * PER_DOCUMENT]
    flat_s, flat = timed(lambda: VectorSet.empty(DIM).changed((), groups, vectors))
    lists_s, fresh = timed(flat.in_lists)
    del flat
    found = {"flat": flat_search(vectors, asked), "fresh": search(fresh, vectors, asked)}
    changes = {"fresh": change_times(fresh, vectors)}
    behind = fall_behind(fresh, vectors, random_state)
    found["behind"] = search(behind, vectors, asked)
    changes["behind"] = change_times(behind, vectors)
    again_s, _ = timed(behind.in_lists)
    return {
        "lists": vector_lists.lists_of(fresh.main.index).nlist,
        "search": found,
        "change_ms": changes,
        "make_s": {"flat": flat_s, "lists": lists_s, "lists again, centroids kept": again_s},
        "snapshot": restart(fresh, behind),
        "checks": [one for name in ("fresh", "behind") for one in checks(name, found[name])],
    }


def documents(numbers: Sequence[int]) -> dict[str, Group]:
    """By key; ids are the rows of the vectors."""
    rows = np.arange(PER_DOCUMENT, dtype=np.int64)
    return {f"doc_{number}": Group("1", number * PER_DOCUMENT + rows) for number in numbers}


def search(index: VectorSet, vectors: Vectors, asked: Vectors) -> dict[str, Any]:
    """Milliseconds of each question after the others, on one thread, and the share of the true ten among the first."""
    true = exact(vectors, asked)
    index.nearest(asked[0], LIMIT)
    seconds, hits = [], 0
    for question, best in zip(asked, true, strict=True):
        taken, found = timed(partial(index.nearest, question, LIMIT))
        seconds.append(taken)
        hits += len({near.id for near in found[:COMPARED]} & set(best.tolist()))
    return {
        "main": index.main.count,
        "delta": index.delta.count,
        "dead": index.main.count + index.delta.count - len(index),
        "p50_ms": round(1000 * statistics.median(seconds), 2),
        "p99_ms": round(1000 * float(np.percentile(seconds, 99)), 2),
        "recall": round(hits / true.size, 4),
    }


def flat_search(vectors: Vectors, asked: Vectors) -> dict[str, Any]:
    """As many as are searched without lists."""
    count = min(vector_set.FLAT_AT_MOST, len(vectors)) // PER_DOCUMENT
    some = vectors[: count * PER_DOCUMENT]
    return search(VectorSet.empty(DIM).changed((), documents(range(count)), some), some, asked)


def exact(vectors: Vectors, asked: Vectors) -> NDArray[np.int64]:
    import faiss

    faiss.omp_set_num_threads(1)
    rows: NDArray[np.int64] = faiss.knn(asked, vectors, COMPARED, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return rows


def change_times(index: VectorSet, vectors: Vectors) -> dict[str, float]:
    """Medians of milliseconds, with the first search after the change, which finishes it."""
    new = {f"new_{key}": group for key, group in documents(range(100 // PER_DOCUMENT)).items()}
    nothing = np.zeros((0, DIM), dtype=np.float32)

    def add(run: int) -> None:
        index.changed((), new, vectors[:100]).nearest(vectors[run], 1)

    def delete(run: int) -> None:
        index.changed({f"doc_{run}"}, {}, nothing).nearest(vectors[run], 1)

    named = {"add 100 vectors": add, "delete a document": delete}
    seconds = {name: [timed(partial(do, run))[0] for run in range(9)] for name, do in named.items()}
    return {name: round(1000 * statistics.median(taken), 1) for name, taken in seconds.items()}


def fall_behind(index: VectorSet, vectors: Vectors, random_state: np.random.Generator) -> VectorSet:
    """Documents indexed again with other vectors, as many as delta takes."""
    most = max(vector_set.LEAST_DELTA, int(vector_set.DELTA_SHARE * index.main.count))
    count = min(most, len(vectors) // 4) // PER_DOCUMENT
    chosen = sorted(random_state.choice(len(vectors) // PER_DOCUMENT, count, replace=False).tolist())
    again = {key: Group("2", group.ids) for key, group in documents(chosen).items()}
    rows = np.concatenate([group.ids for group in again.values()])
    noise = NOISE * random_state.standard_normal((len(rows), DIM), dtype=np.float32)
    vectors[rows] = unit(vectors[rows] + noise)
    return index.changed(again, again, vectors[rows])


def restart(fresh: VectorSet, behind: VectorSet) -> dict[str, float]:
    """Seconds and bytes of a snapshot: all of it, what a small change adds, and a start that believes it."""
    with tempfile.TemporaryDirectory() as folder:
        snapshots = Snapshots(Path(folder), dim=DIM, embedder="benchmark")
        none = VectorSet.empty(DIM)
        save_s, _ = timed(lambda: snapshots.save("default", IndexState(1, fresh, none)))
        save_delta_s, _ = timed(lambda: snapshots.save("default", IndexState(2, behind, none)))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        before = resident()
        again = Snapshots(Path(folder), dim=DIM, embedder="benchmark")
        load_s, loaded = timed(lambda: again.load("default"))
        assert loaded is not None
        assert loaded.windows.nearest(np.ones(DIM, dtype=np.float32), 1)
        memory = resident() - before
    return {
        "save_s": save_s,
        "save_after_a_change_s": save_delta_s,
        "load_and_verify_s": load_s,
        "on_disk_mib": round(size / 2**20),
        "in_memory_mib": round(memory / 2**20),
    }


def resident() -> int:
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and what it gave."""
    started = time.perf_counter()
    result = call()
    return round(time.perf_counter() - started, 5), result


def checks(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    p99, recall = found["p99_ms"], found["recall"]
    return [
        check(f"{name}: p99 of a search", p99, f"<= {P99_MS:g} ms", p99 <= P99_MS),
        check(f"{name}: recall at {COMPARED}", recall, f">= {RECALL:g}", recall >= RECALL),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.vector_scale")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--sentences", type=int, default=20_000, help="real ones at most; 0: random centres")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the report here")
    parser.add_argument("--smoke", action="store_true", help="20,000 vectors from 400 sentences")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
