"""What a text is about, and its name where a sentence begins with a pronoun for it.

Only right after a sentence that is about the subject, and only `it` of a thing, or `he` or `she` of a person: a pronoun
that may mean something else stays, as a wrong name would be learnt as a fact. English only.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from trainer_worker.clauses import VERB
from trainer_worker.sentences import Sentence
from trainer_worker.spans import CAPITALISED
from trainer_worker.words import content_words, says

MAX_NAME_WORDS = 6
MARKS = "#*_ "
"""Of a heading, before its words."""
CLEARLY = 3
"""So many times as often `he` as `she`, or the other way, and the text is about one who is."""
LONG_NAME = 4
"""In letters, from which on a name is hardly a part of a word by chance."""
_OPENING = re.compile(rf"(?:The |An? )?({CAPITALISED}*(?: (?:of |the |and |de |von )*(?:{CAPITALISED}*|\d+))*)")
_ASKED = "who|whom|whose|what|which|when|where|why|how|whether|if"
_JUDGED = (
    "possible|impossible|necessary|important|difficult|hard|easy|common|usual|customary|advisable|best|better|forbidden"
    "|allowed|legal|illegal"
)
_EMPTY = (
    r"(?: (?:is|was) (?:\w+ ){0,3}that\b| (?:is|was) not until\b"
    rf"| (?:is|was|has been|had been|became|remains) (?!an? |the )(?:\w+ ){{1,3}}(?:{_ASKED})\b"
    rf"| (?:is|was|became|remains) (?:\w+ ){{0,2}}(?:{_JUDGED}) (?:for (?:\w+ ){{1,3}})?to\b"
    r"| (?:rains|rained|snows|snowed|turns out|turned out)\b| (?:follows|happened) that\b"
    r"| (?:took|takes) (?:\w+ ){1,4}(?:seconds?|minutes?|hours?|days?|weeks?|months?|years?|centur(?:y|ies)|to)\b)"
)
"""After an `it` that means nothing."""
_PRONOUN = re.compile(rf"^(?:(It)\b(?!{_EMPTY})|(He|She|Its|His|Her)\b(?! (?:is|was) (?:\w+ ){{0,3}}that\b))")
_ENGLISH = re.compile(r"\b(?:the|of|and|is|was|has|it|she|his)\b", re.IGNORECASE)
_AT_FIRST = (
    r"(?:(?:In|On|At|By|From|After|Before|During|Since) [^,.]{1,40}, |In \d{4} |(?:Today|Now|Later|Then),? |The |An? )*"
)
_GOES_ON = (
    rf"(?=\s*$|[,;:(–—]| [(–—-]| (?:{VERB}|\w{{2,}}(?:ed|s)\b|(?:of|in|at|on|by|near|from|with|for)\b"
    r"|(?:never|also|always|often|once|then|now|still|later|first|only|usually|soon|today|itself|himself|herself)\b))"
)
"""What may come after a subject, unless that is but the first word of another: `The steam engine indicator`."""
_POSSESSIVE = {"Its", "His", "Her"}
_KIND = {"It": "it", "Its": "it", "He": "he", "His": "he", "She": "she", "Her": "she"}


def name_of(title: str, text: str) -> str:
    """What the text is about: its title, or else the name that it opens with; a file's name is neither.

    The opening name must have two words or come again, so that no first word of a sentence passes for one.
    """
    if _may_say(text, _bare(title)):
        return title
    match = _OPENING.match(text.lstrip())
    words = match[1].split() if match else []
    if not words or not content_words(words[0]) or len(words) > MAX_NAME_WORDS:
        return title
    name = " ".join(words)
    return name if len(words) > 1 or text.count(name) > 1 else title


def _bare(title: str) -> str:
    return re.sub(r"^(?:the|a|an)\s+", "", title.strip().strip(" ."), flags=re.IGNORECASE)


def _may_say(text: str, name: str) -> bool:
    """Whatever it is made of, and perhaps within a word (`Berlins`): then no other name stands in its place."""
    if not name or (len(name) == 1 and name.islower()):
        return False
    text, name = text.casefold(), name.casefold()
    return (len(name) >= LONG_NAME and name in text) or says(text, name)


def subject_of(title: str, text: str) -> str:
    """The title, if it is a name and the text says it; else nothing can be put for a pronoun."""
    bare = _bare(title)
    return bare if _names(bare) and len(bare.split()) <= MAX_NAME_WORDS and says(text, bare) else ""


def _names(bare: str) -> bool:
    """`4chan` and `K2` do, and `1984` does not."""
    short = len(bare) == 2 and bare.isupper()
    return short or any(any(map(str.isalpha, word)) for word in content_words(bare))


def _is_about(sentence: str, subject: str) -> bool:
    """Whether the subject is what the sentence is about, by its last words too: `Tamsk never married` of `Oriel Tamsk`,
    and neither `Oriel Tamsk's father` nor `In Quillmere the bridge`."""
    *first, last = map(re.escape, subject.split())
    name = "".join(f"(?:{word} )?" for word in first) + last
    return bool(re.match(rf"{_AT_FIRST}{name}{_GOES_ON}", sentence, re.IGNORECASE))


def _with_name(sentence: str, pronoun: re.Match[str], subject: str) -> str:
    named = subject if _is_name(subject) else f"The {subject}"
    return (f"{named}'s" if pronoun[0] in _POSSESSIVE else named) + sentence[pronoun.end() :]


def _is_name(subject: str) -> bool:
    return not any(word[:1].islower() and word not in {"of", "the", "and"} for word in subject.split())


def named(told: Sequence[Sentence], subject: str, before: str) -> Iterator[str]:
    """The sentences, with the subject's name for a pronoun of its that they begin with."""
    kind = _kind_of_subject(told)
    about_subject = bool(subject) and _is_about(before.lstrip(MARKS), subject)
    for sentence in told:
        pronoun = None if sentence.stands else _PRONOUN.match(sentence.text)
        if pronoun and about_subject and _KIND[pronoun[0]] == kind:
            yield _with_name(sentence.text, pronoun, subject)
            about_subject = pronoun[0] not in _POSSESSIVE
        else:
            yield sentence.text
            about_subject = bool(subject) and _is_about(sentence.said, subject)


def _kind_of_subject(told: Sequence[Sentence]) -> str:
    """`it`, `he` or `she`, as most sentences begin that begin with a pronoun; none where as many begin otherwise, where
    a person would be `he` about as often as `she`, or where nothing is in English.

    A single `he` or `she` may be anyone, so it takes two of them to make a person of the subject.
    """
    if not any(_ENGLISH.search(sentence.text) for sentence in told):
        return ""
    open_ones = (sentence.text for sentence in told if not sentence.stands)
    kinds = Counter(_KIND[match[0]] for text in open_ones if (match := _PRONOUN.match(text)))
    it, he, she = kinds["it"], kinds["he"], kinds["she"]
    if it > he + she:
        return "it"
    person, count, others = ("he", he, she) if he > she else ("she", she, he)
    return person if count > 1 and count >= CLEARLY * others and count > it else ""
