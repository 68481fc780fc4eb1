"""What a question about one long document costs by method, stage by stage: the paper's latency experiment (Q15).

    python -m benchmarks.q15 --json [--smoke] [--out FILE] [--questions 30] [--max-tokens 32] [--max-model-len 2048]
                             [--model MODEL | --dummy-weights SHAPE [--model-dir FOLDER]] [--device cpu|cuda]
                             [--precision auto] [--chunk-tokens 768] [--formats original] [--max-seconds 5] [--seed 0]

Thirty questions about one novella, one after another, by six methods: the base model alone, ICL, RAG, one adapter for
the whole document, and an adapter for each chunk of which three are merged (TIES) anew for each question, all in memory
beforehand or read for each question. Each method twice:

`loramem`      through servers that this starts, each on a free port, with one home for all. One learns the document,
               one is asked with the default pools of adapters (larger where these cannot hold the document's), one
               with pools of a byte, which keep no more than the adapter that was used last: what a merge needs is
               read from the files, which the system may have in its cache, and partly twice, as the server reads ahead
               while it builds the prompt. `base` is asked there too (`loramem_again`), to show whether the machine was
               as fast.
`reference`    as the paper describes it (`benchmarks.q15_reference`), in a process of its own, after the servers: the
               same model, adapters, chunks and prompts, except that its RAG reads three whole chunks, as the paper's
               does, and loramem's what LORAMEM_RAG_TOKENS allow. Answers have as many tokens as loramem's.

Setup, in seconds, is apart from the questions, in milliseconds; learning is in neither. Stages of loramem are the
reply's `timings_ms`; `other` is what its client waits for beyond them. ICL reads as much of the document as the window
holds (`icl`), its prompts begin each in another way, so that each is read anew; `icl_cached` lets the engine keep the
document's beginning between questions, as it does by default. Quality is not looked at: by default adapters are trained
for seconds on the text alone. Random weights of a known shape (`--dummy-weights`) therefore do as well, and always
answer with all of --max-tokens. Where answers are drafted from what was taught, what an adapter has learnt does bear on
its speed: `--formats qa+original --max-seconds 110` trains for half an hour on two cores; a server may take longer.

`ratios` are of mean times. In `loramem`, answers of different methods differ in length; `loramem_at_equal_length` has
them as if each had --max-tokens. With `--out` the same is drawn beside the file, as PNG and SVG.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from benchmarks import q15_plot, q15_report, q15_server
from benchmarks.circumstances import circumstances
from benchmarks.option_types import above_zero, at_least_one
from benchmarks.passages import DATA
from benchmarks.q15_bench import Bench, chunks_of, pools, served
from benchmarks.q15_plan import (
    BASE,
    ICL,
    METHODS,
    Device,
    Document,
    ReferencePlan,
    ReferencePrecision,
    ReferenceQuestion,
    ReferenceResult,
)
from benchmarks.q15_server import Learnt, Served
from benchmarks.q15_shapes import SHAPES, write_dummy
from benchmarks.recall_smoke import SMOKE_ITEMS, SMOKE_OTHER
from benchmarks.smoke import ROOT, NoServer
from loramem.base_model import resolve_base_model
from loramem.lines import tidy
from loramem.records import TrainingOptions
from loramem.settings import load_settings
from loramem.store import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from benchmarks.adapters import Archive

FILE = "q15/la_grande_breteche.json"
OVERLAP = 12
"""A chunk shares one token in so many with the one before, as by default."""
SMOKE = {
    "questions": 3,
    "max_tokens": 8,
    "formats": ["original"],
    "max_seconds": 2.0,
    "chunk_tokens": 96,
    "max_model_len": 256,
}
"""The window is shorter than the text, so that there is something to cut."""
SMOKE_RAG_TOKENS = 96


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a check fails."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="loramem-q15-", ignore_cleanup_errors=True) as folder:
        try:
            report = run(options, Path(folder))
        except NoServer as error:
            raise SystemExit(f"benchmarks.q15: {error}") from error
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        q15_plot.draw(report, options.out)
    print(json.dumps(report) if options.json else "\n".join(q15_report.lines(report)))
    return 0 if all(one["ok"] for one in report["checks"]) else 1


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Learn, ask the servers, stop them, run the reference, report. Raises `NoServer`."""
    document = read_document(options)
    bench = Bench(folder, overrides_of(options, folder), options.device)
    learnt, first, second = served(bench, document, options)
    plan = plan_of(bench, learnt, document, options, {**second.answers, **first.answers})
    reference = run_reference(plan, bench)
    loramem = {**second.measured, **first.measured}
    found: dict[str, Any] = {
        "settings": settings_of(bench, learnt, document, options, first, reference),
        "icl": q15_report.cut(*_read(bench, document, first)),
        "learning_s": {name: round(seconds, 1) for name, seconds in learnt.learn_s.items()},
        "loramem": {method: q15_report.summary(loramem[method]) for method in (*METHODS, q15_server.ICL_CACHED)},
        "loramem_again": {BASE: q15_report.summary(second.measured[BASE])},
        "reference": {method: q15_report.summary(reference.methods[method]) for method in METHODS},
        "ratios": q15_report.ratios(loramem, reference.methods, options.max_tokens),
    }
    found["checks"] = (
        q15_report.answered({"loramem": loramem, "reference": reference.methods}, len(document.questions))
        if options.smoke
        else q15_report.checks(found["ratios"], loramem, reference.methods, options.device == "cuda")
    )
    return found | circumstances(_command(options), options.seed)


def plan_of(
    bench: Bench,
    learnt: Learnt,
    document: Document,
    options: argparse.Namespace,
    answers: Mapping[str, Sequence[q15_server.Answered]],
) -> ReferencePlan:
    """Adapters are unpacked into the run's folder."""
    chunks = chunks_of(document.text, bench)
    asked = [
        ReferenceQuestion(
            question=question,
            mark=q15_server.mark(number + 1),
            read=answers[ICL][number].read,
            tokens={method: answers[method][number].asked.output_tokens for method in METHODS},
        )
        for number, question in enumerate(document.questions)
    ]
    tokens = dict.fromkeys(METHODS, options.max_tokens)
    read = min(one.read for one in asked)
    return ReferencePlan(
        device=options.device,
        precision=options.precision,
        title=document.title,
        text=document.text,
        chunks=tuple(chunks),
        adapters=tuple(
            unpack(one, bench.folder / "adapters" / str(number)) for number, one in enumerate(learnt.adapters)
        ),
        whole=unpack(learnt.whole, bench.folder / "adapters" / "whole"),
        warm_up=ReferenceQuestion(question=q15_server.WARM_UP, mark=q15_server.mark(0), read=read, tokens=tokens),
        questions=tuple(asked),
    )


def unpack(archive: "Archive", folder: Path) -> str:
    """The files that PEFT reads."""
    folder.mkdir(parents=True)
    for name in (CONFIG, WEIGHTS):
        (folder / name).write_bytes(archive.files[name])
    return str(folder)


def run_reference(plan: ReferencePlan, bench: Bench) -> ReferenceResult:
    """In a process of its own. Raises `SystemExit` when it fails; it says why on the standard error."""
    files = [bench.folder / name for name in ("plan.json", "result.json")]
    files[0].write_text(plan.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.q15_reference", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, env=bench.environment, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(f"benchmarks.q15: the reference ended with exit status {done.returncode}")
    return ReferenceResult.model_validate_json(files[1].read_text(encoding="utf-8"))


def _read(bench: Bench, document: Document, served: Served) -> tuple[list[int], int]:
    """Tokens of the document that ICL has read, by question, and all that it has."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(bench.base.path / "tokenizer.json"))
    texts = [document.text, *(document.text[: one.read] for one in served.answers[ICL])]
    whole, *read = (len(one) for one in tokenizer.encode_batch(texts, add_special_tokens=False))
    return read, whole


def settings_of(
    bench: Bench,
    learnt: Learnt,
    document: Document,
    options: argparse.Namespace,
    served: Served,
    reference: ReferenceResult,
) -> dict[str, Any]:
    """What the figures depend on."""
    settings = bench.settings
    server = {name: getattr(settings, name) for name in ("max_model_len", "chunk_tokens", "rag_tokens", "rank")}
    return {
        "model": f"dummy {options.dummy_weights}" if options.dummy_weights else bench.base.name,
        "document": document.title,
        "questions": len(document.questions),
        "device": options.device,
        "smoke": options.smoke,
        "max_tokens": options.max_tokens,
        "formats": options.formats,
        "max_seconds": options.max_seconds,
        **server,
        "adapters": len(learnt.adapters),
        "adapters_in_memory": served.warmed,
        "adapter_bytes": learnt.adapter_bytes,
        "pools": pools(settings, learnt.adapter_bytes),
        "reference": {"dtype": reference.dtype, "rag_chunks": round(reference.rag_chunks, 2)},
    }


def read_document(options: argparse.Namespace) -> Document:
    """As the server has it once it is uploaded; the first of its questions, as many as are wanted. Raises `OSError`."""
    if options.smoke:
        items = (*SMOKE_ITEMS, SMOKE_OTHER)
        text = "\n\n".join(item.text for item in items)
        return Document(title="Three places", text=text, questions=tuple(item.questions[0].prompt for item in items))
    found = json.loads((DATA / FILE).read_text(encoding="utf-8"))
    questions = tuple(one["question"] for one in found["questions"])
    return Document(title=found["title"], text=tidy(found["text"]), questions=questions[: options.questions])


def overrides_of(options: argparse.Namespace, folder: Path) -> dict[str, str | int]:
    """Settings that the options name, for servers and reference; a model with random weights is written here."""
    wanted: dict[str, str | int | None] = {"model": options.model, "max_model_len": options.max_model_len}
    if options.dummy_weights:
        from transformers import AutoTokenizer

        embedded = resolve_base_model(load_settings(home=folder / "home", model="embedded"))
        tokenizer = AutoTokenizer.from_pretrained(embedded.path)
        model = options.model_dir or folder / f"dummy-{options.dummy_weights}"
        wanted["model"] = str(write_dummy(model, options.dummy_weights, tokenizer, options.seed).resolve())
    if options.chunk_tokens:
        wanted |= {
            "chunk_tokens": options.chunk_tokens,
            "chunk_overlap_tokens": options.chunk_tokens // OVERLAP,
        }
    if options.smoke:
        wanted |= {"rag_tokens": SMOKE_RAG_TOKENS}
    return {name: value for name, value in wanted.items() if value is not None}


def _command(options: argparse.Namespace) -> str:
    """What repeats the run; folders by their names."""
    said = "python -m benchmarks.q15 --json"
    if options.model:
        said += f" --model {Path(options.model).name if Path(options.model).is_dir() else options.model}"
    if options.dummy_weights:
        said += f" --dummy-weights {options.dummy_weights}"
    if options.smoke:
        return f"{said} --smoke --device {options.device} --precision {options.precision} --seed {options.seed}"
    said += f" --questions {options.questions} --max-tokens {options.max_tokens}"
    said += f" --formats {'+'.join(options.formats)} --max-seconds {options.max_seconds:g}"
    for name in ("max_model_len", "chunk_tokens"):
        if value := getattr(options, name):
            said += f" --{name.replace('_', '-')} {value}"
    return f"{said} --device {options.device} --precision {options.precision} --seed {options.seed}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.smoke:
        vars(options).update(SMOKE)
    if options.model and options.dummy_weights:
        parser.error("--model and --dummy-weights name two models")
    if options.model_dir and not options.dummy_weights:
        parser.error("--model-dir is for --dummy-weights")
    gpu = _has_gpu()
    if options.device == "cpu" and _is_built_for_gpus():
        parser.error("--device cpu needs the engine's build for CPUs (LORAMEM_PROFILE=cpu)")
    if options.device == "cuda" and not gpu:
        parser.error("--device cuda: there is no GPU that torch can use")
    options.device = options.device or ("cuda" if gpu else "cpu")
    if not options.smoke and not (DATA / FILE).is_file():
        parser.error(f"no benchmark data found: {FILE} under LORAMEM_BENCH_DATA")
    return options


def _formats(text: str) -> list[str]:
    try:
        return list(TrainingOptions.model_validate({"formats": text}).formats)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(error.errors()[0]["msg"]) from error


def _is_built_for_gpus() -> bool:
    """The package of the build for CPUs has another name."""
    try:
        return bool(version("vllm"))
    except PackageNotFoundError:
        return False


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.q15", description=__doc__.splitlines()[0] if __doc__ else "")
    add = parser.add_argument
    add("--model", help="base model of servers and reference; default: LORAMEM_MODEL, or the embedded one")
    add("--dummy-weights", choices=tuple(SHAPES), metavar="SHAPE", help=f"random weights: {', '.join(SHAPES)}")
    add("--model-dir", type=Path, metavar="FOLDER", help="keeps the random model; one that is there is used")
    add("--device", choices=get_args(Device), help="default: the GPU if there is one")
    add("--precision", choices=get_args(ReferencePrecision), default="auto", help="of the reference's base model")
    add("--questions", type=at_least_one, default=30, help="how many are asked, of as many as there are")
    add("--max-tokens", type=at_least_one, default=32, help="of an answer")
    add("--formats", type=_formats, default="original", metavar="A+B", help="what adapters learn from")
    add("--max-seconds", type=above_zero, default=5.0, help="of training an adapter")
    add(
        "--max-model-len",
        type=at_least_one,
        metavar="N",
        help="the servers' window in tokens; default: LORAMEM_MAX_MODEL_LEN",
    )
    add("--chunk-tokens", type=at_least_one, metavar="N", help="default: LORAMEM_CHUNK_TOKENS")
    add("--seed", type=int, default=0, help="of the order of methods, and of random weights")
    add("--out", type=Path, metavar="FILE", help="the report, with bars drawn beside it")
    add("--smoke", action="store_true", help="three questions about a short text, a few seconds of training")
    add("--json", action="store_true", help="one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
