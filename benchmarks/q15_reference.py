"""The six methods of the paper's latency experiment as its Appendix U describes them: transformers, PEFT,
sentence-transformers and FAISS, one question after another.

    python -m benchmarks.q15_reference PLAN.json RESULT.json

`ReferencePlan` in, `ReferenceResult` out (`benchmarks.q15_plan`); `benchmarks.q15` runs it, with the settings
(LORAMEM_*) of its servers, which name the base model and the embedder. Stages have the paper's names. Each is timed
with `time.perf_counter` and, on a GPU, begins and ends with `torch.cuda.synchronize`. Every method loads the model
anew. Prompts are loramem's; each answer has as many tokens as loramem's had. Taking a merge out again is not timed.
"""

import gc
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.q15_plan import (
    BASE,
    ICL,
    PER_QUESTION,
    PRELOADED,
    RAG,
    SINGLE,
    TOP_K,
    Asked,
    Measured,
    ReferencePlan,
    ReferenceQuestion,
    ReferenceResult,
)
from benchmarks.scores import mean
from loramem import prompts
from loramem.base_model import BaseModel, max_positions, resolve_base_model
from loramem.embed import Embedder, load_embedder
from loramem.prompts import Message
from loramem.settings import load_settings

DENSITY = 0.5
PROBE_CHARS = 1000
PROBE_TOKENS = 16
MERGED = "merged"


class Stopwatch:
    """Seconds by stage."""

    def __init__(self, device: str) -> None:
        self.stages: dict[str, float] = {}
        self._device = device

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What was queued on a GPU before is done when it begins, and its own when it ends."""
        self._synchronize()
        started = time.perf_counter()
        yield
        self._synchronize()
        self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - started

    def _synchronize(self) -> None:
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()


class Model:
    """The base model by transformers: how it is loaded, how prompts become tokens, how it answers."""

    def __init__(self, base: BaseModel, device: str, dtype: str) -> None:
        from transformers import AutoTokenizer

        self.device, self.dtype = device, dtype
        self.window = max_positions(base)
        self._path = str(base.path)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(self._path)

    def load(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        model: Any = AutoModelForCausalLM.from_pretrained(self._path, dtype=getattr(torch, self.dtype))
        pad = self._tokenizer.pad_token_id
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, eos_token_id=model.generation_config.eos_token_id, pad_token_id=0 if pad is None else pad
        )
        return torch.nn.Module.to(model, self.device).eval()

    def encode(self, messages: list[Message]) -> Any:
        """Tensors (1, tokens) on the device."""
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self._tokenizer(text, add_special_tokens=False, return_tensors="pt").to(self.device)

    def generate(self, model: Any, inputs: Any, tokens: int) -> int:
        """Greedily, so many tokens and no fewer; returns how many came."""
        sequences = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens)
        return int(sequences.shape[1] - inputs["input_ids"].shape[1])


class Retriever:
    """Chunks by inner product of unit vectors, one for each chunk."""

    def __init__(self, embedder: Embedder, chunks: Sequence[str]) -> None:
        import faiss

        self._embedder = embedder
        self._index: Any = faiss.IndexFlatIP(embedder.dim)
        self._index.add(embedder.embed(chunks))

    def best(self, question: str, watch: Stopwatch) -> list[int]:
        """Up to `TOP_K` chunks, best first."""
        with watch.stage("query_embedding"):
            vector = self._embedder.embed_query(question)[None, :]
        with watch.stage("faiss_search"):
            _, found = self._index.search(vector, min(TOP_K, self._index.ntotal))
        return [int(chunk) for chunk in found[0]]


class ClosedBook:
    """Method `base`, and what the others share."""

    name = BASE

    def __init__(self, plan: ReferencePlan, base: Model) -> None:
        self.plan, self.base = plan, base
        self.model: Any = None

    def set_up(self, watch: Stopwatch) -> None:
        with watch.stage("model_loading"):
            self.model = self.base.load()

    def ask(self, asked: ReferenceQuestion, watch: Stopwatch) -> Asked:
        messages = self.prepare(asked, watch)
        with watch.stage("tokenization"):
            inputs = self.base.encode(messages)
        with watch.stage("inference"):
            tokens = self.base.generate(self.model, inputs, asked.tokens[self.name])
        self.clear()
        stages_ms = {name: seconds * 1000 for name, seconds in watch.stages.items()}
        prompt_tokens = int(inputs["input_ids"].shape[1])
        return Asked(
            stages_ms=stages_ms, wall_ms=sum(stages_ms.values()), prompt_tokens=prompt_tokens, output_tokens=tokens
        )

    def prepare(self, asked: ReferenceQuestion, watch: Stopwatch) -> list[Message]:
        """Retrieve, load and merge what the method needs; the prompt."""
        return [{"role": "user", "content": asked.question}]

    def clear(self) -> None:
        """Take out what `prepare` has put into the model."""


class InContext(ClosedBook):
    name = ICL

    def prepare(self, asked: ReferenceQuestion, watch: Stopwatch) -> list[Message]:
        text = self.plan.text[: asked.read]
        mark = {"role": "system", "content": asked.mark}
        return [mark, *prompts.with_document(asked.question, self.plan.title, text)]


class Retrieving(ClosedBook):
    """A method that finds chunks first."""

    def set_up(self, watch: Stopwatch) -> None:
        super().set_up(watch)
        with watch.stage("rag_setup"):
            self.retriever = Retriever(load_embedder(load_settings(), self.base.device), self.plan.chunks)


class Retrieval(Retrieving):
    """Whole chunks in the prompt, in reading order; the worst are left out when the model's window has no room."""

    name = RAG

    def __init__(self, plan: ReferencePlan, base: Model) -> None:
        super().__init__(plan, base)
        self.chunks_read: list[int] = []

    def prepare(self, asked: ReferenceQuestion, watch: Stopwatch) -> list[Message]:
        best = self.retriever.best(asked.question, watch)
        while len(best) > 1 and not self._fits(asked, best):
            best = best[:-1]
        self.chunks_read.append(len(best))
        return self._messages(asked, best)

    def _fits(self, asked: ReferenceQuestion, chunks: Sequence[int]) -> bool:
        length = self.base.encode(self._messages(asked, chunks))["input_ids"].shape[1]
        return bool(length + asked.tokens[self.name] <= self.base.window)

    def _messages(self, asked: ReferenceQuestion, chunks: Sequence[int]) -> list[Message]:
        return prompts.with_passages(asked.question, [self.plan.chunks[chunk] for chunk in sorted(chunks)])


class Single(ClosedBook):
    name = SINGLE

    def set_up(self, watch: Stopwatch) -> None:
        from peft import PeftModel

        super().set_up(watch)
        with watch.stage("lora_loading_and_attach"):
            self.model = PeftModel.from_pretrained(self.model, self.plan.whole)

    def prepare(self, asked: ReferenceQuestion, watch: Stopwatch) -> list[Message]:
        return prompts.closed_book(asked.question)


class Preloaded(Retrieving):
    name = PRELOADED
    activation = "lora_activation"

    def set_up(self, watch: Stopwatch) -> None:
        from peft import PeftModel

        super().set_up(watch)
        with watch.stage("all_lora_loading"):
            self.model = PeftModel.from_pretrained(self.model, self.plan.adapters[0], adapter_name="0")
            for number, folder in enumerate(self.plan.adapters[1:], start=1):
                self.model.load_adapter(folder, str(number))

    def prepare(self, asked: ReferenceQuestion, watch: Stopwatch) -> list[Message]:
        self.merge(self.adapters_of(self.retriever.best(asked.question, watch), watch), watch)
        return prompts.closed_book(asked.question)

    def adapters_of(self, chunks: Sequence[int], watch: Stopwatch) -> list[str]:
        """Names in the model."""
        return [str(chunk) for chunk in chunks]

    def merge(self, adapters: list[str], watch: Stopwatch) -> None:
        with watch.stage("lora_merge"):
            self.model.add_weighted_adapter(
                adapters, [1.0] * len(adapters), MERGED, combination_type="ties", density=DENSITY
            )
        with watch.stage(self.activation):
            self.model.set_adapter(MERGED)

    def clear(self) -> None:
        self.model.set_adapter("0")
        self.model.delete_adapter(MERGED)


class PerQuestion(Preloaded):
    """Adapter `0` makes the model one of PEFT's and is not merged; what is merged is loaded for each question."""

    name = PER_QUESTION
    activation = "lora_attach"

    def set_up(self, watch: Stopwatch) -> None:
        from peft import PeftModel

        Retrieving.set_up(self, watch)
        self.model = PeftModel.from_pretrained(self.model, self.plan.adapters[0], adapter_name="0")
        self.loaded: list[str] = []

    def adapters_of(self, chunks: Sequence[int], watch: Stopwatch) -> list[str]:
        self.loaded = [f"loaded{chunk}" for chunk in chunks]
        with watch.stage("lora_loading"):
            for chunk, name in zip(chunks, self.loaded, strict=True):
                self.model.load_adapter(self.plan.adapters[chunk], name)
        return self.loaded

    def clear(self) -> None:
        super().clear()
        for name in self.loaded:
            self.model.delete_adapter(name)


def run(plan: ReferencePlan, base: BaseModel) -> ReferenceResult:
    """All methods, one after another."""
    dtype = plan.precision if plan.precision != "auto" else fastest_dtype(base, plan)
    model = Model(base, plan.device, dtype)
    rag = Retrieval(plan, model)
    ways = (
        ClosedBook(plan, model),
        InContext(plan, model),
        rag,
        Single(plan, model),
        Preloaded(plan, model),
        PerQuestion(plan, model),
    )
    methods = {way.name: measured(way) for way in ways}
    return ReferenceResult(dtype=dtype, rag_chunks=mean([float(one) for one in rag.chunks_read[1:]]), methods=methods)


def measured(way: ClosedBook) -> Measured:
    """Set up, warmed by a question that is not counted, and asked everything; its model is given back."""
    device = way.base.device
    setup = Stopwatch(device)
    way.set_up(setup)
    way.ask(way.plan.warm_up, Stopwatch(device))
    asked = [way.ask(one, Stopwatch(device)) for one in way.plan.questions]
    way.model = None
    _free(device)
    return Measured(setup_s=setup.stages, asked=tuple(asked))


def fastest_dtype(base: BaseModel, plan: ReferencePlan) -> str:
    """bfloat16 on a GPU; on a CPU, the type in which the model reads some of the document and answers sooner."""
    if plan.device == "cuda":
        return "bfloat16"
    taken = {
        dtype: _probe(Model(base, plan.device, dtype), plan.text[:PROBE_CHARS]) for dtype in ("float32", "bfloat16")
    }
    return min(taken, key=taken.__getitem__)


def _probe(model: Model, text: str) -> float:
    """Seconds of the second time."""
    loaded, inputs = model.load(), model.encode(prompts.closed_book(text))
    watch = Stopwatch(model.device)
    model.generate(loaded, inputs, PROBE_TOKENS)
    with watch.stage("probe"):
        model.generate(loaded, inputs, PROBE_TOKENS)
    del loaded
    _free(model.device)
    return watch.stages["probe"]


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 2:
        raise SystemExit("benchmarks.q15_reference: give the files of the plan and of the result")
    plan_file, result_file = map(Path, given)
    plan = ReferencePlan.model_validate_json(plan_file.read_text(encoding="utf-8"))
    result = run(plan, resolve_base_model(load_settings()))
    result_file.write_text(result.model_dump_json(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
