import pytest

from trainer_worker.blocks import Block
from trainer_worker.sentences import sentences_of
from trainer_worker.subject import named


def told(subject: str, text: str, before: str = "") -> str:
    return " ".join(named(sentences_of([Block(text)]), subject, before))


@pytest.mark.parametrize(
    ("subject", "text", "expected"),
    [
        ("Hadle Mill", "Hadle Mill is old. It leaks.", "Hadle Mill is old. Hadle Mill leaks."),
        (
            "Oriel Tamsk",
            "Tamsk never rests. She drew. She sang.",
            "Tamsk never rests. Oriel Tamsk drew. Oriel Tamsk sang.",
        ),
        ("Orm", "Orm is a town. It takes its name from a river.", "Orm is a town. Orm takes its name from a river."),
        (
            "Ode Pell",
            "Pell caught a fever. He died. He was old.",
            "Pell caught a fever. Ode Pell died. Ode Pell was old.",
        ),
        ("Quillmere", "In 1902 Quillmere burned. It is small.", "In 1902 Quillmere burned. Quillmere is small."),
        ("Quillmere", "After May, Quillmere burned. It is small.", "After May, Quillmere burned. Quillmere is small."),
        (
            "Quillmere",
            "Quillmere (a harbour) is old. It is small.",
            "Quillmere (a harbour) is old. Quillmere is small.",
        ),
    ],
)
def test_what_is_said_of_the_subject_next_is_said_by_its_name(subject: str, text: str, expected: str) -> None:
    assert told(subject, text) == expected


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        ("Oriel Tamsk", "Oriel Tamsk married Jon Ask. He died in May. He was a miller. She drew caves."),
        ("Oriel Tamsk", "Oriel Tamsk's father was a cooper. He died in 1902. He was poor."),
        ("Quillmere", "In Quillmere the old bridge burned in 1819. It was rebuilt."),
        ("Acme", "Unlike Acme, Brae Ltd. makes pumps. It was founded in 1950."),
        ("Marie Curie", "Marie Curie discovered radium. It glows in the dark. She won."),
        ("Quillmere", "Quillmere is old. It is not known who founded Quillmere."),
        ("Quillmere", "Quillmere is old. It is easy to reach the harbour."),
        ("Quillmere", "Quillmere is old. It took two days to rebuild the bridge."),
        ("Bergen", "Bergen er en by. Her ligger havnen. Her bor det 290 000."),
        ("Steam engine", "The steam engine indicator traces the pressure. It was made by Watt."),
        ("Oxygen", "Singlet oxygen is a gas. It is made in the air."),
        ("", "The mill is old. It leaks."),
    ],
    ids=[
        *("two people", "a relative", "a place", "a comparison", "a thing of hers", "unknown", "easy", "took"),
        *("Norwegian", "a longer name", "a kind of it", "no subject"),
    ],
)
def test_a_pronoun_that_may_mean_something_else_stays(subject: str, text: str) -> None:
    assert told(subject, text) == text


@pytest.mark.parametrize(("before", "named_so"), [("# Hadle Mill", True), ("## The owner of Hadle Mill", False)])
def test_a_heading_may_say_what_the_next_sentence_is_about(before: str, named_so: bool) -> None:
    assert told("Hadle Mill", "It leaks.", before) == ("Hadle Mill leaks." if named_so else "It leaks.")
