"""The values that requests hold, as types: what a text, a name, a filter may be."""

import json
import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from loramem.errors import InvalidValue
from loramem.lines import composed

METADATA_BYTES = 16_384
MAX_MESSAGE_CHARS = 200_000
MAX_KEYS = 100


def few_keys(value: Any) -> Any:
    """Of an object that is read key by key; each that is wrong is an error to be kept."""
    if isinstance(value, dict) and len(value) > MAX_KEYS:
        raise ValueError(f"must have at most {MAX_KEYS} keys")
    return value


def _storable(value: str) -> str:
    """NUL cannot be stored in PostgreSQL, lone surrogates not in UTF-8."""
    if "\0" in value:
        raise ValueError("must not hold NUL characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode, without lone surrogates") from None
    return value


def _composed(value: object) -> object:
    """Before its length is counted, which may become a quarter: what is longer yet is refused as it is."""
    return composed(value) if isinstance(value, str) and len(value) <= 4 * MAX_MESSAGE_CHARS else value


def not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must hold more than white space")
    return value


def check_max_tokens(key: str, wanted: int, limit: int, window: int) -> None:
    """Raises `InvalidValue` for more tokens of an answer than the server allows, or than leave the model's window room
    for a question."""
    if wanted > limit:
        raise InvalidValue(
            f"{key} is {wanted}, at most {limit} are allowed (LORAMEM_MAX_TOKENS_LIMIT)",
            key=key,
            value=wanted,
            allowed=f"1 to {limit}",
        )
    if wanted >= window:
        raise InvalidValue(
            f"{key} is {wanted}, and the model's window has {window} tokens for question and answer together",
            key=key,
            value=wanted,
            allowed=f"1 to {window - 1}",
        )


def _small_json(value: dict[str, Any]) -> dict[str, Any]:
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except ValueError:
        raise ValueError("must be valid JSON: finite numbers and valid Unicode") from None
    holds_nul = "\\u0000" in text.replace("\\\\", "")  # after an escaped backslash it is only the characters u0000
    if size > METADATA_BYTES or holds_nul:
        raise ValueError(f"must be at most {METADATA_BYTES} bytes of JSON without NUL characters")
    return value


def _scalar(value: object) -> object:
    """One message for all types; a union would answer with one per type."""
    if isinstance(value, str):
        return _storable(value)
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError("must be text, a finite number, true or false")


def _top_k(value: object) -> object:
    """One message for both forms; a union would answer with one per form."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 8):
        return value
    raise ValueError("must be a whole number from 1 to 8, or 'auto'")


TopK = Annotated[Annotated[int, Field(ge=1, le=8)] | Literal["auto"], BeforeValidator(_top_k)]
Text = Annotated[str, AfterValidator(_storable)]
FilledText = Annotated[str, AfterValidator(_storable), AfterValidator(not_blank)]
PairText = Annotated[FilledText, BeforeValidator(_composed)]
MessageText = Annotated[
    str, StringConstraints(max_length=MAX_MESSAGE_CHARS), AfterValidator(_storable), BeforeValidator(_composed)
]
FilledMessage = Annotated[MessageText, AfterValidator(not_blank)]
NamespaceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
Metadata = Annotated[dict[str, Any], AfterValidator(_small_json)]
FilterKey = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r'^[^"\\\x00]+$'), AfterValidator(_storable)
]
FilterValue = Annotated[bool | int | float | str, BeforeValidator(_scalar)]
Filter = Annotated[dict[FilterKey, FilterValue], Field(max_length=16), BeforeValidator(few_keys)]
Title = Annotated[str, StringConstraints(max_length=500), AfterValidator(_storable), BeforeValidator(_composed)]
ExternalId = Annotated[str, StringConstraints(max_length=256), AfterValidator(_storable), AfterValidator(not_blank)]
