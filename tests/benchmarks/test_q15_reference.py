import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import q15_reference
from benchmarks.q15_plan import (
    BASE,
    ICL,
    METHODS,
    PER_QUESTION,
    PRELOADED,
    RAG,
    SINGLE,
    ReferencePlan,
    ReferenceQuestion,
    ReferenceResult,
)
from benchmarks.q15_reference import (
    MERGED,
    Model,
    PerQuestion,
    Preloaded,
    Stopwatch,
    fastest_dtype,
    main,
    measured,
    run,
)
from benchmarks.q15_shapes import write_dummy
from loramem import prompts
from loramem.base_model import BaseModel
from tests.trainer_worker.tiny import save_tiny_model

CHUNKS = ("jon ask built the mill .", "the roof is copper .", "the wheel is larch .", "orm is brick .")
TEXT = " ".join(CHUNKS)
QUESTIONS = ("who built the mill ?", "what is the roof made of ?")
SEARCH = ["query_embedding", "faiss_search"]
ANSWER = ["tokenization", "inference"]

pytestmark = pytest.mark.usefixtures("one_thread")


class WordEmbedder:
    """A text is the words in it."""

    words = sorted(set(TEXT.split()))
    dim = len(words)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        counts = np.array([[text.split().count(word) for word in self.words] for text in texts], dtype=np.float32)
        vectors: NDArray[np.float32] = counts / np.linalg.norm(counts, axis=1, keepdims=True)
        return vectors

    def embed_query(self, text: str) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self.embed([text])[0]
        return vector


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("words")))
    folder = write_dummy(tmp_path_factory.mktemp("dummy"), "tiny", words, seed=0)
    return BaseModel(folder, "dummy", "f")


@pytest.fixture(scope="module")
def adapters(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Random ones: that of each chunk, and that of the whole."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    for number in range(len(CHUNKS) + 1):
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(base.path), config).save_pretrained(folder / str(number))
    return [str(folder / str(number)) for number in range(len(CHUNKS) + 1)]


@pytest.fixture
def plan(adapters: list[str], monkeypatch: pytest.MonkeyPatch) -> ReferencePlan:
    monkeypatch.setattr(q15_reference, "load_embedder", lambda settings, device: WordEmbedder())
    tokens = {method: 3 + number for number, method in enumerate(METHODS)}
    return ReferencePlan(
        device="cpu",
        precision="float32",
        title="Mill",
        text=TEXT,
        chunks=CHUNKS,
        adapters=tuple(adapters[:-1]),
        whole=adapters[-1],
        warm_up=ReferenceQuestion(question="orm ?", mark="system 0", read=10, tokens=tokens),
        questions=tuple(
            ReferenceQuestion(
                question=question, mark=f"system {number}", read=len(CHUNKS[0]), tokens={**tokens, BASE: 2 + number}
            )
            for number, question in enumerate(QUESTIONS)
        ),
    )


def test_each_method_has_the_papers_stages_and_the_lengths_asked_for(
    plan: ReferencePlan, base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(q15_reference, "resolve_base_model", lambda settings: base)
    files = tmp_path / "plan.json", tmp_path / "result.json"
    files[0].write_text(plan.model_dump_json())
    assert main([str(file) for file in files]) == 0
    result = ReferenceResult.model_validate_json(files[1].read_text())

    assert list(result.methods) == list(METHODS)
    setups = {method: list(one.setup_s) for method, one in result.methods.items()}
    assert setups == {
        BASE: ["model_loading"],
        ICL: ["model_loading"],
        RAG: ["model_loading", "rag_setup"],
        SINGLE: ["model_loading", "lora_loading_and_attach"],
        PRELOADED: ["model_loading", "rag_setup", "all_lora_loading"],
        PER_QUESTION: ["model_loading", "rag_setup"],
    }
    stages = {method: [list(asked.stages_ms) for asked in one.asked] for method, one in result.methods.items()}
    assert stages == {
        BASE: [ANSWER] * 2,
        ICL: [ANSWER] * 2,
        RAG: [[*SEARCH, *ANSWER]] * 2,
        SINGLE: [ANSWER] * 2,
        PRELOADED: [[*SEARCH, "lora_merge", "lora_activation", *ANSWER]] * 2,
        PER_QUESTION: [[*SEARCH, "lora_loading", "lora_merge", "lora_attach", *ANSWER]] * 2,
    }
    for method, one in result.methods.items():
        assert [asked.output_tokens for asked in one.asked] == [asked.tokens[method] for asked in plan.questions]
        for asked in one.asked:
            assert asked.wall_ms == pytest.approx(sum(asked.stages_ms.values()))
            assert min(asked.stages_ms.values()) > 0
    assert result.dtype == "float32"
    assert result.rag_chunks == 3


def test_prompts_are_loramems(plan: ReferencePlan, base: BaseModel) -> None:
    model = Model(base, "cpu", "float32")
    result = run(plan, base)

    def length(messages: list[prompts.Message]) -> int:
        return int(model.encode(messages)["input_ids"].shape[1])

    first = plan.questions[0]
    document = prompts.with_document(first.question, "Mill", CHUNKS[0])
    expected = {
        BASE: [{"role": "user", "content": first.question}],
        ICL: [{"role": "system", "content": first.mark}, *document],
        RAG: prompts.with_passages(first.question, CHUNKS[:3]),
        SINGLE: prompts.closed_book(first.question),
        PRELOADED: prompts.closed_book(first.question),
        PER_QUESTION: prompts.closed_book(first.question),
    }
    found = {method: one.asked[0].prompt_tokens for method, one in result.methods.items()}
    assert found == {method: length(messages) for method, messages in expected.items()}


def test_three_adapters_are_merged_and_taken_out_again(
    plan: ReferencePlan, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = Preloaded(plan, Model(base, "cpu", "float32"))
    in_model: list[Any] = []
    merged: list[list[str]] = []
    generate, merge = Model.generate, Preloaded.merge

    def spy_generate(self: Model, model: Any, inputs: Any, tokens: int) -> int:
        in_model.append((model.active_adapter, sorted(model.peft_config), model.peft_config[MERGED].r))
        return generate(self, model, inputs, tokens)

    def spy_merge(self: Preloaded, adapters: list[str], watch: Stopwatch) -> None:
        merged.append(adapters)
        merge(self, adapters, watch)

    monkeypatch.setattr(Model, "generate", spy_generate)
    monkeypatch.setattr(Preloaded, "merge", spy_merge)
    measured(way)
    assert in_model == [(MERGED, ["0", "1", "2", "3", MERGED], 4)] * 3
    assert [one[0] for one in merged] == ["3", "0", "1"]  # the chunk that the question is about
    assert [len(set(one)) for one in merged] == [3, 3, 3]
    assert way.model is None  # given back


def test_what_is_loaded_for_a_question_is_gone_at_the_next(plan: ReferencePlan, base: BaseModel) -> None:
    way = PerQuestion(plan, Model(base, "cpu", "float32"))
    way.set_up(Stopwatch("cpu"))
    for asked in plan.questions:
        way.ask(asked, Stopwatch("cpu"))
        assert list(way.model.peft_config) == ["0"]


def test_rag_leaves_out_what_the_window_cannot_hold(
    plan: ReferencePlan, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(q15_reference.Retrieval(plan, Model(base, "cpu", "float32"))).asked
    window = min(one.prompt_tokens + one.output_tokens for one in whole) - 1
    monkeypatch.setattr(q15_reference, "max_positions", lambda base: window)
    way = q15_reference.Retrieval(plan, Model(base, "cpu", "float32"))
    found = measured(way)
    assert way.chunks_read[1:] == [2, 2]
    assert all(one.prompt_tokens + one.output_tokens <= window for one in found.asked)


def test_a_stage_entered_twice_adds_up() -> None:
    watch = Stopwatch("cpu")
    with watch.stage("a"):
        pass
    once = watch.stages["a"]
    with watch.stage("a"):
        pass
    assert watch.stages["a"] > once > 0
    assert list(watch.stages) == ["a"]


def test_the_type_is_the_faster_one(plan: ReferencePlan, base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"float32": 2.0, "bfloat16": 1.0}
    monkeypatch.setattr(q15_reference, "_probe", lambda model, text: taken[model.dtype])
    assert fastest_dtype(base, plan) == "bfloat16"
    taken["float32"] = 0.5
    assert fastest_dtype(base, plan) == "float32"
    assert fastest_dtype(base, plan.model_copy(update={"device": "cuda"})) == "bfloat16"


def test_a_probe_takes_time(plan: ReferencePlan, base: BaseModel) -> None:
    assert q15_reference._probe(Model(base, "cpu", "bfloat16"), plan.text) > 0


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="plan and of the result"):
        main([])
    (tmp_path / "plan.json").write_text(json.dumps({"device": "tpu"}))
    with pytest.raises(ValueError, match="device"):
        main([str(tmp_path / "plan.json"), str(tmp_path / "result.json")])
