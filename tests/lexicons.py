"""Lexicons of texts that a test gives, and what is found in them."""

from loramem.lexical import Entry, Lexicon, Words


def of_texts(*texts: str) -> Words:
    """Unit u0 holds the first text, in a group of its own, u1 the second and so on."""
    lexicon = Lexicon()
    lexicon.change((), [Entry(f"g{number}", f"u{number}", text) for number, text in enumerate(texts)])
    return lexicon.snapshot()


def found(words: Words, question: str) -> set[str]:
    return {unit for unit, _ in words.search(question, 1000)}
