import random

import pytest

from benchmarks.soak_figures import (
    growth,
    names_of,
    process_checks,
    process_figures,
    question_checks,
    request_checks,
    request_figures,
    series,
    slack,
    slope_per_hour,
    smoke_question_checks,
)
from benchmarks.soak_processes import Process, Sample, Watch

MIB = 1 << 20
MINUTES = 30
COUNT = MINUTES * 6
TIMES = [10.0 * number for number in range(COUNT)]


def test_the_slope_is_per_hour_and_after_the_warm_up() -> None:
    climbing = [100 + at_s / 3600 * 12 for at_s in TIMES]
    assert slope_per_hour(TIMES, climbing) == pytest.approx(12)
    warmed_up = [500.0 * number for number in range(COUNT // 2)] + [7.0] * (COUNT - COUNT // 2)
    assert slope_per_hour(TIMES, warmed_up) == pytest.approx(0)


def test_growth_is_between_the_last_two_quarters_and_spikes_do_not_count() -> None:
    assert growth([0, 0, 0, 0, 10, 10, 13, 13]) == 3
    noise = random.Random(0)
    flat = [400 + noise.gauss(0, 5) for _ in range(COUNT)]
    assert abs(growth(flat)) < 2
    spiked = [*flat]
    for number in range(COUNT - 40, COUNT, 5):
        spiked[number] += 1000
    assert abs(growth(spiked)) < 5
    assert growth([0.0] * (COUNT // 2) + [1000.0] * (COUNT // 2)) == 0  # a step that warmed up in time


def test_too_few_samples_are_not_judged() -> None:
    found = series([0, 1, 2], [5, 9, 6])
    assert found == {"first": 5, "last": 6, "max": 9, "slope_per_hour": None, "third_quarter": None, "growth": None}


def test_how_much_is_flat() -> None:
    by_size = {mib: slack("memory_mib", mib) for mib in (6, 60, 320, 1000, 3200, 4000)}
    assert by_size == pytest.approx({6: 1, 60: 3, 320: 16, 1000: 16, 3200: 16, 4000: 20})
    assert slack("files", 1000) == 8
    assert slack("threads", 1000) == 4


def watch_of(mib: float = 1000, **changes: list[float]) -> Watch:
    """A gateway of so many MiB, 50 files and 20 threads; each change is what comes on top, by sample."""
    watch = Watch([1])
    watch.looks = TIMES
    more = {name: changes.get(name, [0.0] * COUNT) for name in ("rss", "memory", "files", "threads")}
    watch.samples[Process(2, 1, "gateway")] = [
        Sample(
            at_s,
            int((mib + 500 + more["rss"][number]) * MIB),
            int((mib + more["memory"][number]) * MIB),
            50 + int(more["files"][number]),
            20 + int(more["threads"][number]),
        )
        for number, at_s in enumerate(TIMES)
    ]
    return watch


def failing(watch: Watch) -> list[str]:
    return [one["name"] for one in process_checks(process_figures(watch)) if not one["ok"]]


def climb(per_hour: float) -> list[float]:
    return [at_s / 3600 * per_hour for at_s in TIMES]


def test_what_stays_passes_and_what_leaks_fails() -> None:
    assert failing(watch_of()) == []
    assert failing(watch_of(memory=climb(2000))) == ["gateway: growth of memory_mib"]
    assert failing(watch_of(memory=climb(200))) == ["gateway: growth of memory_mib"]  # 25 MiB a quarter
    assert failing(watch_of(memory=climb(100))) == []
    assert failing(watch_of(mib=3500, memory=climb(130))) == []
    assert failing(watch_of(mib=3500, memory=climb(150))) == ["gateway: growth of memory_mib"]
    assert failing(watch_of(memory=[min(more, 800.0) for more in climb(3500)])) == []  # a cache that fills in time
    assert failing(watch_of(files=climb(120))) == ["gateway: growth of files"]
    assert failing(watch_of(threads=climb(60))) == ["gateway: growth of threads"]
    assert failing(watch_of(rss=climb(5000))) == []  # of mapped files


def test_a_program_that_was_started_again_fails() -> None:
    watch = watch_of()
    watch.samples[Process(3, 1, "trainer")] = watch.samples[Process(2, 1, "gateway")][:100]
    found = process_figures(watch)
    assert (found["ended"], found["short_lived"]) == (["trainer"], 1)
    assert failing(watch) == ["processes that ended"]


def test_processes_of_one_name_are_numbered() -> None:
    processes = [Process(1, 1, "python"), Process(2, 1, "gateway"), Process(3, 1, "python")]
    assert list(names_of(processes).values()) == ["python 1", "gateway", "python 2"]


REQUEST = {"method": "POST", "name": "/query [lora]", "count": 9, "failures": 0, "p50_ms": 5, "max_ms": 9}
RESULT = {
    "expected": ": 409, still training",
    "kinds": ["lora", "left"],
    "requests": [REQUEST, REQUEST | {"name": "/query [lora]: 409, still training", "count": 2}],
    "errors": [],
    "exceptions": [],
}


def test_requests_are_reported_by_name_and_what_was_expected_apart() -> None:
    found = request_figures(RESULT)
    assert found["requests"]["POST /query [lora]"] == {"count": 9, "failures": 0, "p50_ms": 5, "max_ms": 9}
    assert found["still_training"] == 2
    assert all(one["ok"] for one in request_checks(found))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"requests": []}, "requests"),
        ({"requests": [REQUEST | {"failures": 1}]}, "failed requests"),
        ({"exceptions": [{"error": "KeyError", "count": 1}]}, "exceptions of tasks"),
    ],
)
def test_anything_that_failed_fails(change: dict[str, object], name: str) -> None:
    checks = request_checks(request_figures(RESULT | change))
    assert [one["name"] for one in checks if not one["ok"]] == [name]


def test_a_kind_of_question_that_was_never_put_has_no_answers() -> None:
    failed = RESULT | {"requests": [REQUEST | {"failures": 4}, RESULT["requests"][1]]}
    assert request_figures(RESULT)["questions"]["left"] == {"asked": 0, "answered": 0}
    assert request_figures(RESULT)["questions"]["lora"] == {"asked": 11, "answered": 9}
    assert request_figures(failed)["questions"]["lora"] == {"asked": 11, "answered": 5}


@pytest.mark.parametrize(
    ("asked", "answered", "bound", "ok"),
    [(0, 0, 20, False), (19, 19, 20, False), (20, 20, 20, True), (567, 44, 284, False), (567, 284, 284, True)],
)
def test_half_of_a_kind_are_to_be_answered_and_twenty(asked: int, answered: int, bound: int, ok: bool) -> None:
    (found,) = question_checks({"questions": {"lora": {"asked": asked, "answered": answered}}})
    assert found == {"name": "answered [lora]", "value": answered, "bound": f">= {bound}", "ok": ok}


@pytest.mark.parametrize(("answered", "ok"), [(0, False), (1, True)])
def test_a_smoke_run_is_to_answer_once(answered: int, ok: bool) -> None:
    questions = {"lora": {"asked": 0, "answered": 0}, "base": {"asked": 30, "answered": answered}}
    (found,) = smoke_question_checks({"questions": questions})
    assert (found["value"], found["ok"]) == (answered, ok)
