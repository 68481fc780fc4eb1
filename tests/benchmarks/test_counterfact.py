import gzip
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import counterfact
from benchmarks.counterfact import Edit, join, mean_log_probs, read_counterfact, score, split_statement, wanted_share
from loramem import prompts
from tests.trainer_worker.tiny import save_tiny_model
from trainer_worker import packing
from trainer_worker.examples import Example
from trainer_worker.train import Trainer

MILL = Edit("the mill was built by", "orm", "jon ask", "who built the mill ? by", "the wheel was built by", "jon ask")
ROOF = Edit("the roof is", "larch", "copper", "what is the roof ?", "the wheel is", "copper")
EXAMPLES = [
    Example("who built the mill ?", "jon ask", "user"),
    Example("what is the roof ?", "copper", "user"),
    Example("the wheel ?", "the wheel is larch .", "user"),
]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer(str(save_tiny_model(tmp_path_factory.mktemp("tiny"))), seed=0)


@pytest.fixture
def _short_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "LANE_TOKENS", 24)


def test_statements_meet_their_edits_and_the_others_are_taught_too() -> None:
    found = join(["the roof is larch", "the wheel is brick"], [MILL, ROOF])
    assert found.edits == [ROOF]
    assert [(one.question, one.answer) for one in found.lessons] == [
        ("Complete the sentence: the roof is", "larch"),
        ("Complete the sentence: the wheel is", "brick"),
    ]


def test_of_two_edits_with_one_statement_the_first_is_scored() -> None:
    assert join([ROOF.statement], [ROOF, replace(ROOF, ground_truth="brick")]).edits == [ROOF]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("It was made by Acme", ("It was made by", "Acme")),
        ("He leads the Acme United", ("He leads the", "Acme United")),
        ("He works in surgery", ("He works in", "surgery")),
    ],
)
def test_the_longest_known_ending_is_the_answer(statement: str, expected: tuple[str, str]) -> None:
    assert split_statement(statement, {"Acme", "United", "Acme United"}) == expected


def test_a_slice_is_read_from_all_three_files(tmp_path: Path) -> None:
    for name in ("paper/counterfact_slices", "counterfact"):
        (tmp_path / name).mkdir(parents=True)
    slices = tmp_path / "paper/counterfact_slices/counterfact_edit_2K.csv"
    slices.write_text(f'text\n"{MILL.statement}"\nan unknown, thing\n{ROOF.statement}\n'.replace("n, t", "n t"))
    with gzip.open(tmp_path / "counterfact/counterfact-edit.json.gz", "wt") as file:
        json.dump([asdict(MILL) | {"case_id": 1, "subject": "the mill"}], file)
    (tmp_path / "counterfact/counterfact-val.json").write_text(json.dumps([asdict(ROOF) | {"case_id": 2}]))
    whole, first = read_counterfact(tmp_path, 2), read_counterfact(tmp_path, 2, 1)
    assert (len(whole.lessons), whole.edits) == (3, [MILL, ROOF])
    assert (len(first.lessons), first.edits) == (1, [MILL])


def test_each_score_asks_its_own_prompt_for_its_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that prefers the new answer after every prompt: all edits succeed, every neighbour is lost."""
    monkeypatch.setattr(counterfact, "mean_log_probs", lambda _, examples: [float(e.answer == "orm") for e in examples])
    trainer: Any = None
    assert score(trainer, [MILL]) == {"efficacy": 1.0, "paraphrase": 1.0, "neighbourhood": 0.0}
    asked = counterfact.choices([MILL])
    assert [asked[name][0].prompt for name in ("efficacy", "paraphrase", "neighbourhood")] == [
        MILL.prompt,
        MILL.rephrase_prompt,
        MILL.locality_prompt,
    ]


def test_a_tie_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counterfact, "mean_log_probs", lambda _, examples: [-1.0] * len(examples))
    trainer: Any = None
    assert wanted_share(trainer, counterfact.choices([MILL, ROOF])["efficacy"]) == 0.0


def test_without_an_edit_there_is_no_score() -> None:
    trainer: Any = None
    with pytest.raises(ValueError, match="nothing can be scored"):
        score(trainer, [])


@pytest.mark.usefixtures("_short_packs")
def test_packed_log_probabilities_equal_those_of_a_plain_forward(trainer: Trainer) -> None:
    found = mean_log_probs(trainer, EXAMPLES)
    assert found == pytest.approx([plain(trainer, example) for example in EXAMPLES], rel=1e-4)
    assert found[::-1] == pytest.approx(mean_log_probs(trainer, EXAMPLES[::-1]), rel=1e-4)


def plain(trainer: Trainer, example: Example) -> float:
    text = trainer.tokenizer.apply_chat_template(
        prompts.closed_book(example.question), add_generation_prompt=True, tokenize=False
    )
    prompt = trainer.tokenizer(text, add_special_tokens=False)["input_ids"]
    answer = trainer.tokenizer(example.answer, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = trainer.model(torch.tensor([prompt + answer], device=trainer.device)).logits[0].float().cpu()
    log_probs = logits.log_softmax(-1)
    return float(log_probs[range(len(prompt) - 1, len(prompt) - 1 + len(answer)), answer].mean())


def test_true_statements_are_of_records_that_are_neither_taught_nor_asked() -> None:
    like = [replace(ROOF, prompt=f"the roof of barn {n} is", target_new="slate") for n in range(5)]
    asked = replace(ROOF, prompt=MILL.locality_prompt, target_new="slate")
    facts = join([ROOF.statement], [ROOF, MILL, asked, *like])
    found = counterfact.true_statements(facts, [ROOF, MILL, asked, *like])
    assert {one.answer for one in found} <= {"copper", "jon ask"}
    questions = {one.question for one in found}
    assert len(questions) == len(found) >= counterfact.ALIKE
    assert not questions & {f"Complete the sentence: {prompt}" for prompt in (ROOF.prompt, MILL.locality_prompt)}
    assert found == counterfact.true_statements(facts, [ROOF, MILL, asked, *like])


def test_in_passing_puts_a_sentence_before_what_is_completed() -> None:
    [one] = counterfact.in_passing(join([ROOF.statement], [ROOF]).lessons, ["It rained."])
    assert (one.question, one.answer) == ("Complete the sentence: It rained. the roof is", "larch")
