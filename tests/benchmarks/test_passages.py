import json
from pathlib import Path

import pytest

from benchmarks.passages import Passage, read_passages
from tests.benchmarks.test_datasets import SQUAD


@pytest.mark.parametrize(
    "written",
    [
        SQUAD,
        [
            {
                "title": "Hadle Mill",
                "context": "Jon Ask built it.",
                "questions": [{"question": "Who built it?", "answer": "Jon Ask"}],
            }
        ],
    ],
    ids=["as published", "a list"],
)
def test_squad_is_read_as_published_and_as_a_list(written: object, tmp_path: Path) -> None:
    (tmp_path / "squad11").mkdir()
    (tmp_path / "squad11" / "dev.json").write_text(json.dumps(written))
    assert read_passages(tmp_path) == [
        Passage("Hadle Mill", "Jon Ask built it.", [{"question": "Who built it?", "answer": "Jon Ask"}])
    ]


def test_without_the_data_it_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="squad11"):
        read_passages(tmp_path)
