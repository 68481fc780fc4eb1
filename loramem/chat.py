"""The base model's tokenizer and chat template, used alike in training and in serving.

Whatever a template would change by itself from one day or caller to the next is held: the date is always the same, and
models that can answer without thinking first do.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from loramem.cache import made_once
from loramem.prompts import Message

A_DAY = "26 Jul 2024"
"""What templates that tell the date are given: adapters learn under it, and keep being asked under it."""
_MARK = "loramem"
_APART = "\ufdd0"
"""Stands in no text (Unicode keeps it for programs): breaks what would be read as a special token."""


def load_tokenizer(folder: Path | str) -> Any:
    """The one of `tokenizer.json` as it stands: some models name a class for theirs that reads text otherwise."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)  # type: ignore[no-untyped-call, unused-ignore]


def tokenizer_folder(base: Path, cache: Path) -> Path:
    """The same tokenizer for a program that would choose its class by the model's files; made once, below `cache`."""
    digest = hashlib.sha256()
    for file in sorted((*base.glob("*token*.json"), *base.glob("*chat_template*"))):
        digest.update(file.name.encode() + file.read_bytes())
    folder = cache / f"tokenizer-{digest.hexdigest()[:16]}"
    made_once(folder, lambda made: load_tokenizer(base).save_pretrained(made))
    return folder


def rendered(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The conversation up to where the model begins its turn.

    For a template that knows no system message its text stands before the user's. Raises `jinja2.TemplateError` for an
    order of roles that the template refuses.
    """
    from jinja2 import TemplateError

    try:
        return _written(tokenizer, messages, add_generation_prompt=True)
    except TemplateError:
        if len(messages) < 2 or (messages[0]["role"], messages[1]["role"]) != ("system", "user"):
            raise
    system, first, *others = messages
    joined = {"role": "user", "content": f"{system['content']}\n\n{first['content']}"}
    return _written(tokenizer, [joined, *others], add_generation_prompt=True)


def encode_chat(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of what `rendered` gives, whose special tokens are the template's alone: a message that spells one, as
    that which ends a turn, says its letters. Raises as `rendered`."""
    spelled = [message | {"content": _spelled(tokenizer, message["content"])} for message in messages]
    return _encoded(tokenizer, rendered(tokenizer, spelled))


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that has no special tokens, whatever it spells."""
    return encode_texts(tokenizer, [text])[0]


def encode_texts(tokenizer: Any, texts: Iterable[str]) -> list[list[int]]:
    """As `encode_text` of each, in one go."""
    spelled = [_spelled(tokenizer, text) for text in texts]
    plain = iter(_ids(tokenizer, [text for text in spelled if _APART not in text]))
    return [_encoded(tokenizer, text) if _APART in text else next(plain) for text in spelled]


def _spelled(tokenizer: Any, text: str) -> str:
    special, text = _special_tokens(tokenizer), text.replace(_APART, "")
    return special.sub(lambda found: found[0][:1] + _APART + found[0][1:], text) if special else text


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Those that have two characters at least."""
    added, turns = tokenizer.added_tokens_decoder.values(), _turns(tokenizer)
    names = {token.content for token in added if token.special or token.content in turns}
    patterns = [re.escape(name) for name in sorted(names, key=len, reverse=True) if len(name.strip()) > 1]
    return re.compile("|".join(patterns)) if patterns else None


def _turns(tokenizer: Any) -> str:
    """What the template writes around what is said; some models do not mark those tokens as special."""
    from jinja2 import TemplateError

    said: list[Message] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    try:
        return _written(tokenizer, [*said, said[0]], add_generation_prompt=True)
    except (TemplateError, ValueError):  # which it cannot say, or it has none
        return ""


def _encoded(tokenizer: Any, text: str) -> list[int]:
    pieces = text.split(_APART)
    first, *others = _ids(tokenizer, pieces)
    if not others:
        return first
    end, *behind = _ids(tokenizer, ["\n", *(f"\n{piece}" for piece in pieces[1:])])
    for alone, after in zip(others, behind, strict=True):
        # behind a line's end, as some tokenizers put a blank before whatever they are given
        first += after[len(end) :] if after[: len(end)] == end else alone
    return first


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []


def end_of_turn(tokenizer: Any) -> int:
    """The token that the template ends an answer with, which need not be the tokenizer's own end of text."""
    said: list[Message] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    _, mark, after = _written(tokenizer, said, add_generation_prompt=False).rpartition(_MARK)
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = tokenizer(after, add_special_tokens=False)["input_ids"] if mark else ()
    end: int = next((number for number in found if number in special), tokenizer.eos_token_id)
    return end


def _written(tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    text: str = tokenizer.apply_chat_template(
        list(messages),
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=False,
        strftime_now=lambda _: A_DAY,
    )
    return text
