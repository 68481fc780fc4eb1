"""Short documents with five questions each, made up: what a server answers about them it has from them."""

from benchmarks.datasets import Asked, Item

BRIEF = {"formats": ["original"], "max_seconds": 1.0}
"""Training in a smoke run: enough to see that everything runs, not to learn much."""
SMOKE_METHODS = ("base", "rag", "lora")


def _item(title: str, text: str, *pairs: tuple[str, str]) -> Item:
    return Item(title, text, tuple(Asked(question, (answer,)) for question, answer in pairs))


SMOKE_ITEMS = (
    _item(
        "The Tolvik ferry",
        "The ferry of Tolvik was built in 1931 by Marta Engstad. It carries twelve cars and crosses the Grey Sound in "
        "nineteen minutes. Its hull is painted yellow, so that it is seen in fog. The captain is Ole Brandal, who has "
        "steered it since 2004. On Sundays the crossing is free.",
        ("Who built the ferry of Tolvik?", "Marta Engstad"),
        ("In which year was the ferry of Tolvik built?", "1931"),
        ("How many cars does the ferry of Tolvik carry?", "twelve"),
        ("What colour is the hull of the ferry of Tolvik?", "yellow"),
        ("On which day is the crossing of the Tolvik ferry free?", "Sunday"),
    ),
    _item(
        "The observatory on Mount Senna",
        "The observatory on Mount Senna stands 2,840 metres above the sea. Its mirror was ground by Ilse Wadrow and is "
        "3.2 metres wide. In 1978 it found the comet Harlan-Doss. The dome turns on wheels from a railway carriage. "
        "Visitors are let in on the first Friday of each month.",
        ("How high above the sea does the observatory on Mount Senna stand?", "2,840 metres"),
        ("Who ground the mirror of the observatory on Mount Senna?", "Ilse Wadrow"),
        ("How wide is the mirror of the observatory on Mount Senna?", "3.2 metres"),
        ("Which comet did the observatory on Mount Senna find in 1978?", "Harlan-Doss"),
        ("From what are the wheels on which the dome on Mount Senna turns?", "a railway carriage"),
    ),
)

SMOKE_OTHER = _item(
    "The bridge of Halm",
    "The bridge of Halm has eleven arches of red sandstone. It was opened in 1688 by the abbess Thea Morland. "
    "A lantern burns at its northern end from dusk to dawn. Carts pay two pennies, and geese go over free. "
    "The river below it is called the Vesk.",
    ("How many arches does the bridge of Halm have?", "eleven"),
    ("Who opened the bridge of Halm?", "Thea Morland"),
    ("In which year was the bridge of Halm opened?", "1688"),
    ("How much do carts pay on the bridge of Halm?", "two pennies"),
    ("What is the river below the bridge of Halm called?", "the Vesk"),
)
"""Where a third is wanted, or one that is not uploaded."""
