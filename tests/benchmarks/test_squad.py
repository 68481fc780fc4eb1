import pytest

from benchmarks.squad import Passage, draw, mean_f1, summary, token_f1
from loramem.records import Mode

PASSAGES = [
    Passage("Mill", "Jon Ask built it.", [{"question": "Who built it?", "answer": "Jon Ask"}]),
    Passage("Roof", "It is copper.", [{"question": "Of what is it?", "answer": "copper"}]),
]


@pytest.mark.parametrize(
    ("answer", "expected", "f1"),
    [
        ("The mill was built by Jon Ask.", "Jon Ask", 2 * 2 / (6 + 2)),
        ("JON ASK!", "the Jon Ask", 1.0),
        ("copper copper", "copper", 2 / 3),
        ("larch", "copper", 0.0),
        ("", "copper", 0.0),
        ("the", "a", 1.0),
    ],
)
def test_words_count_without_case_articles_and_punctuation(answer: str, expected: str, f1: float) -> None:
    assert token_f1(answer, expected) == pytest.approx(f1)


def test_a_draw_is_by_its_seed() -> None:
    many = [Passage(str(number), "", []) for number in range(50)]
    assert draw(many, 5, 0) == draw(many, 5, 0) != draw(many, 5, 1)


def test_every_question_weighs_the_same() -> None:
    assert mean_f1(PASSAGES, [["Jon Ask"], ["larch"]]) == 0.5
    assert mean_f1(PASSAGES, [["Jon Ask"]]) == 1.0  # of the passages that have answers


def test_lora_is_held_against_rag_and_against_the_papers_recipe() -> None:
    right, wrong = [["Jon Ask"], ["copper"]], [["larch"], ["larch"]]
    answers: dict[Mode, list[list[str]]] = {
        "base": wrong,
        "rag": right,
        "lora": [["Jon Ask"], ["larch"]],
        "hybrid": right,
    }
    report = summary(PASSAGES, answers, [["Jon Ask"]], [1.0, 2.0], smoke=False)
    assert report["f1"] | {"hybrid": 1.0} == report["f1"]
    assert (report["f1"]["lora"], report["f1"]["paper"], report["f1"]["lora on the paper's"]) == (0.5, 1.0, 1.0)
    assert [(one["name"], one["ok"]) for one in report["checks"]] == [
        ("lora of rag", False),
        ("lora of the paper's recipe", False),
    ]
    assert report["answers"][1]["lora"] == "larch"
    assert summary(PASSAGES, answers, [], [1.0, 2.0], smoke=True)["checks"] == []
