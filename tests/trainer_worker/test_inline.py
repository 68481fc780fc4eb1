"""Marks within lines."""

import pytest

from trainer_worker.inline import inline


@pytest.mark.parametrize(
    "said",
    [
        "`__init__` is run",
        "*.md,*.txt",
        "a * b * c and x*y*z",
        "*args, **kwargs",
        "call a[0](1)",
        "#hashtag",
        "C# is old",
        '"*", "*"',
        "*/5,*/10 * * *",
        "ps aux | grep x\ncat y | sort",
        "<person name='x'>",
    ],
)
def test_signs_that_mark_nothing_stay(said: str) -> None:
    assert inline(said) == said.replace("`", "")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Run `x --y` *now* or **never**.", "Run x --y now or never."),
        ("***Very*** **old *and* red**.", "Very old and red."),
        ("Use `**x**` here.", "Use **x** here."),
        ("See [the `guide`](docs/a_(b).md) and [**more**](x 'y').", "See the guide and [more](x 'y')."),
        ("See [the\nguide](docs/a.md) or [that][one].", "See the guide or that."),
        ("[![Build](b.svg)](https://ci) ![logo](l.png) It is red.", "It is red."),
        ("A<br>B<!-- not this --> H<sub>2</sub>O", "A B H2O"),
        ("这是**重点**内容。", "这是重点内容。"),
        ("Il est **très\nvieux**.", "Il est très vieux."),
        ("It is _very_ old, _so *to* say_.", "It is very old, so to say."),
        ("__Very__ old: snake_case, __init__, $x_i + y_j$, {a}_{n} + {b}_{m}.", None),
    ],
)
def test_marks_within_lines_go(line: str, said: str | None) -> None:
    assert " ".join(inline(line).split()) == (said or line.replace("__Very__", "Very"))
