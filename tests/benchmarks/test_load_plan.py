import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import load_plan
from benchmarks.datasets import BadData
from benchmarks.load_documents import NAMES, synthesize
from benchmarks.load_plan import Trace, at_once, draw, find_trace, parse_mix, poisson, read_trace, zipf

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
TEXTS = synthesize(20, 0)


def test_poisson_arrivals_have_the_rate_and_its_scatter() -> None:
    counts = [len(poisson(5, 100, 16, seed).at_s) for seed in range(200)]
    assert np.mean(counts) == pytest.approx(500, rel=0.01)
    assert np.var(counts) == pytest.approx(500, rel=0.3)  # of a Poisson number, the mean
    gaps = np.diff(poisson(50, 200, 16, 1).at_s)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.05)  # of exponential gaps, the mean


def test_arrivals_are_ascending_within_the_time_and_the_same_for_a_seed() -> None:
    first, again, other = (poisson(10, 30, 16, seed).at_s for seed in (3, 3, 4))
    assert (np.diff(first) >= 0).all()
    assert 0 <= first[0] <= first[-1] < 30
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_a_trace_keeps_its_gaps_in_proportion_and_takes_the_rate(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    rows = ("00:00:10.0000000,9,44", "00:00:10.5000000,9,4", "00:00:12.0000000,9,0", "00:00:12.5000000,9,7")
    file.write_text(HEADER + "".join(f"2023-11-16 {row}\n" for row in rows))
    arrivals = read_trace(file).arrivals(rate=0.3, seconds=10, max_tokens=16)
    assert arrivals.at_s.tolist() == pytest.approx([0, 2, 8])  # 0.5, 1.5 and 0.5 s become 2, 6 and 2
    assert arrivals.max_tokens.tolist() == [16, 4, 1]


def test_a_trace_that_is_too_short_is_refused() -> None:
    trace = Trace(np.array([0.0, 1.0, 2.0]), np.array([1, 1, 1]))
    assert len(trace.arrivals(1, 2, 16).at_s) == 2
    with pytest.raises(ValueError, match="3 requests, 4 are needed"):
        trace.arrivals(1, 3, 16)
    with pytest.raises(ValueError, match="same time"):
        Trace(np.zeros(3), np.ones(3, dtype=np.int64)).arrivals(1, 2, 16)
    assert not len(trace.arrivals(0.1, 2, 16).at_s)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("TIMESTAMP,GeneratedTokens\n2023-11-16 18:15:46,4\nyesterday,4\n", "line 3"),
        ("TIMESTAMP,GeneratedTokens\n2023-11-16 18:15:46,many\n", "line 2"),
        ("TIMESTAMP\n2023-11-16 18:15:46\n", "line 2"),
        (HEADER, "no request"),
        (HEADER + "2023-11-16 18:15:46,1,1\n2023-11-16 18:15:45,1,1\n", "order"),
    ],
)
def test_a_bad_trace_is_named(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(content)
    with pytest.raises(BadData, match=f"bad.csv.*{said}"):
        read_trace(file)


def test_a_trace_is_looked_for_in_the_data_then_as_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "traces").mkdir()
    stored, own = tmp_path / "traces" / "azure.csv", tmp_path / "own.csv"
    for file in (stored, own):
        file.write_text(HEADER)
    monkeypatch.setattr(load_plan, "DATA", tmp_path)
    assert find_trace("azure.csv") == stored
    assert find_trace(str(own)) == own
    with pytest.raises(FileNotFoundError, match=r"'none.csv'"):
        find_trace("none.csv")


def test_popularity_follows_zipf() -> None:
    shares = zipf(4, 1.0)
    assert shares.tolist() == pytest.approx([12 / 25, 6 / 25, 4 / 25, 3 / 25])
    assert zipf(4, 0).tolist() == [0.25] * 4
    asked = Counter(one.document for one in draw(at_once(5000, 16), TEXTS, {"lora": 1.0}, 1.1, 0))
    assert asked[0] / 5000 == pytest.approx(zipf(20, 1.1)[0], rel=0.1)
    assert asked[0] > asked[4] > asked[19] > 0


def test_a_plan_is_drawn_from_its_seed_alone() -> None:
    arrivals = poisson(20, 50, 16, 0)
    mix = parse_mix("lora:3,rag")
    plan = draw(arrivals, TEXTS, mix, 1.1, 0)
    assert plan == draw(arrivals, TEXTS, mix, 1.1, 0) != draw(arrivals, TEXTS, mix, 1.1, 1)
    assert [one.at_s for one in plan] == arrivals.at_s.tolist()
    modes = Counter(one.mode for one in plan)
    assert modes["lora"] / len(plan) == pytest.approx(0.75, abs=0.05)
    assert set(modes) == {"lora", "rag"}
    assert all(one.question in TEXTS[one.document].questions for one in plan)
    asked = {one.question for one in plan if one.document == 0}
    assert asked == set(TEXTS[0].questions)
    only = draw(arrivals, TEXTS, {"base": 1.0}, 1.1, 0)
    assert [replace(one, mode="base", document=0, question="") for one in plan] == [
        replace(one, document=0, question="") for one in only
    ]


def test_weights_become_shares() -> None:
    assert parse_mix("lora:3,rag:1") == {"lora": 0.75, "rag": 0.25}
    assert parse_mix("auto") == {"auto": 1}


@pytest.mark.parametrize("text", ["", "loras:1", "lora:0", "lora:-1", "lora:many", "lora:inf", "lora:1,lora:2"])
def test_a_mix_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_mix(text)


# documents


def test_documents_differ_and_come_again_from_their_seed() -> None:
    texts = synthesize(200, 7)
    assert texts == synthesize(200, 7)
    assert texts[:5] == synthesize(5, 7)
    assert texts != synthesize(200, 8)
    for values in ([one.text for one in texts], [one.title for one in texts], [one.external_id for one in texts]):
        assert len(set(values)) == 200
    questions = [question for one in texts for question in one.questions]
    assert len(set(questions)) == len(questions) == 600
    assert all(2 <= one.text.count(".") <= 3 and "{" not in one.text + " ".join(one.questions) for one in texts)


def test_there_are_names_for_so_many() -> None:
    assert len({one.title for one in synthesize(NAMES, 0)}) == NAMES
    for count in (0, NAMES + 1):
        with pytest.raises(ValueError, match=f"{count} documents"):
            synthesize(count, 0)
