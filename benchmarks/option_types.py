"""Numbers on a command line, refused with the bound that they miss."""

from argparse import ArgumentTypeError


def at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def above_zero(text: str) -> float:
    """And finite."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise ArgumentTypeError(f"must be above 0, not {text}")
    return number


def zero_or_more(text: str) -> float:
    """And finite."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ArgumentTypeError(f"must be 0 or more, not {text}")
    return number
