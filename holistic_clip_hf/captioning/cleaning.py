# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Whether an answer is a caption: repaired, cut to whole sentences, and judged, with the reason in words."""

import re
import unicodedata
from collections import Counter
from functools import cache
from typing import Any, NamedTuple

from ..corpus.sampling import split_sentences
from .perspectives import Answer, Perspective
from .repairs import COMMAS, repair, split_words


class Cleaned(NamedTuple):
    """A caption and its status, as in `rows`; `error` says what was cut, or why it is no caption."""

    caption: str
    status: str
    error: str


# Far from natural text: they refuse none of 30,000 dictionary glosses (WordNet).
_MOST_REPEATED = 0.5  # share of 4-grams that occurred before: "seq-rep-4" of https://arxiv.org/abs/1908.04319
_MOST_IN_A_ROW = 3  # copies of a block of words
_LONGEST_BLOCK = 16  # words; longer blocks make a loop of 4-grams or of sentences

# Fewer words say too little. From 6 on, a probability under 0.003 finds 77 % of 9,880 lists of emoji tags in 16 other
# languages in Latin script, where sentences would be found more often, and refuses none of 25,680 English glosses.
_LEAST_WORDS_FOR_LANGUAGE = 6
_LEAST_PROBABILITY = 0.003

# By the first word of a character's Unicode name. Languages that are written in several scripts are left out.
_SCRIPTS = {
    ("LATIN",): "en de fr es it pt nl sv da no nb nn fi is et lv lt pl cs sk sl hr hu ro tr vi id ms ca eu gl cy ga",
    ("CYRILLIC",): "ru uk be bg mk",
    ("ARABIC",): "ar fa ur",
    ("DEVANAGARI",): "hi mr ne",
    ("CJK",): "zh",
    ("CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC"): "ja",
    ("HANGUL", "CJK"): "ko",
    ("BENGALI",): "bn",
    ("GREEK",): "el",
    ("HEBREW",): "he",
    ("TAMIL",): "ta",
    ("TELUGU",): "te",
    ("THAI",): "th",
    ("GEORGIAN",): "ka",
    ("ARMENIAN",): "hy",
}
_SCRIPTS_OF = {language: scripts for scripts, languages in _SCRIPTS.items() for language in languages.split()}

_PICTURE = r"(?:the|this|that|any|an?|your)(?: \w+)? (?:images?|pictures?|photos?|photographs?|attachments?)\b"
_CANNOT = (
    r"(?:can ?not|can't|could not|couldn't|do not|don't|won't|will not|am unable to|am not able to|was unable to)"
    r" (?:actually |directly |really )?(?:see|view|help|assist|provide|describe|identify|determine|access|process|open"
    r"|comply|generate|recogni[sz]e|tell|discern|analy[sz]e|answer|fulfill?|create|make out|have|display|give|list)\b"
)
_REFUSAL = re.compile(
    rf"(?:(?:but|however|unfortunately|apologies)\b\W*)*i {_CANNOT}"
    r"|(?:i'm|i am) (?:\w+ )?(?:sorry|unable|not able|not capable)\b"
    r"|sorry\b\W*(?:but )?(?:i\b|there is no|no image)|(?:my )?apologies\b\W|i apologi[sz]e\b"
    r"|as an? (?:ai|artificial intelligence|(?:large |vision[- ])*language model|text-based)\b"
    r"|(?:there is|there's|i see) no (?:image|picture|photo)\b|no (?:image|picture|photo) (?:was|is|has|provided)\b"
    r"|(?:could|can|would) you (?:please )?(?:provide|upload|share|attach|send)\b"
    rf"|please (?:provide|upload|share|attach|send) {_PICTURE}"
    r"|it (?:seems|looks like|appears)\b[^.]{0,40}\b(?:no image|image (?:is|was|has) (?:not|missing)|forgot)\b"
)
_REFUSAL_WITHIN = re.compile(
    rf"\bi {_CANNOT}[^.]{{0,40}} {_PICTURE}|\bas an ai\b|\bas a (?:large |vision[- ])*language model\b"
)

_SENTENCE_ENDS = ".!?。！？।۔؟"
_OPEN_ENDS = ",:;-–—(，、：；"
_NO_ENDS = {"dr", "mr", "mrs", "ms", "prof", "st", "jr", "sr", "no", "fig", "vs", "ca", "approx", "e.g", "i.e", "cf"}
_LONGEST_END = 200  # characters in which the end of a sentence shows

_LEAST_WORDS_OF_ECHO = 4  # fewer words may stand in a prompt and still answer it
_PART = {"sentences": "sentence", "list": "item", "phrase": "phrase"}


def clean_answer(text: str, finished: bool, perspective: Perspective) -> Cleaned:
    """The caption in an answer; `finished` is false where the captioner's budget ended it. Takes any text.

    A rejected answer keeps its words, so that they can be looked at. Raises `ImportError` where the perspective asks
    for a language and py3langid is not installed.

    >>> clean_answer("A dog sits on grass. Behind it a", False, Perspective("detail", "Describe it.")).caption
    'A dog sits on grass.'
    """
    caption, answer = repair(text, perspective), perspective.answer
    if finished and not split_words(caption):
        return Cleaned("", "empty", "nothing but marks, thinking or an announcement" if text.strip() else "no text")
    for status, fault in _FAULTS.items():
        if reason := fault(caption, perspective):
            return Cleaned(caption, status, reason)
    parts = _segments(caption, answer.form)
    whole = _whole_parts(parts, finished, answer.form)
    if not whole:
        return Cleaned(caption, "unfinished", f"no whole {_PART[answer.form]} before the end of its budget")
    once: dict[str, str] = {}
    for part in whole:
        once.setdefault(_key(part), part)
    return _measured("".join(once.values()), _cuts(parts, whole, len(once), answer.form), answer)


def _measured(caption: str, cuts: str, answer: Answer) -> Cleaned:
    caption = caption.strip().rstrip(COMMAS if answer.form == "list" else "").rstrip()
    count = len(split_words(caption))
    if not answer.min_words <= count <= answer.max_words:
        reason = f"a length of {count} in words, not {answer.min_words} to {answer.max_words}"
        status = "too_short" if count < answer.min_words else "too_long"
        return Cleaned(caption, status, f"{cuts}; {reason}" if cuts else reason)
    return Cleaned(caption, "cut" if cuts else "ok", cuts)


def _refusal(caption: str, perspective: Perspective) -> str:
    if perspective.prompt is None:
        return ""
    said = caption.replace("’", "'").casefold()
    found = _REFUSAL.match(said) or _REFUSAL_WITHIN.search(said)
    return f"the captioner refuses: {found[0]!r}" if found else ""


def _echo(caption: str, perspective: Perspective) -> str:
    """Nothing but the prompt, or a part of it; from the front of a caption `repair` has cut it already."""
    said, asked = (split_words(text.casefold()) for text in (caption, perspective.prompt or ""))
    is_part = len(said) >= _LEAST_WORDS_OF_ECHO and f" {' '.join(said)} " in f" {' '.join(asked)} "
    return "the captioner repeats the prompt" if is_part or (said and said == asked) else ""


def _repetition(caption: str, perspective: Perspective) -> str:
    keys = [_key(part) for part in _segments(caption, perspective.answer.form)]
    if 2 * len(set(keys)) < len(keys):
        return f"only {len(set(keys))} of {len(keys)} {_PART[perspective.answer.form]}s differ"
    words = split_words(caption.casefold())
    grams = list(zip(*(words[start:] for start in range(4)), strict=False))
    if grams and (repeated := 1 - len(set(grams)) / len(grams)) > _MOST_REPEATED:
        return f"{repeated:.0%} of its runs of four words occurred before"
    for length in range(1, _LONGEST_BLOCK + 1):
        run = 0
        for one, other in zip(words, words[length:], strict=False):
            run = run + 1 if one == other else 0
            if run == length * _MOST_IN_A_ROW:
                return f"a block of {length} words more than {_MOST_IN_A_ROW} times in a row"
    return ""


def _language(caption: str, perspective: Perspective) -> str:
    language = perspective.answer.language
    letters = {one: many for one, many in Counter(unicodedata.normalize("NFKC", caption)).items() if one.isalpha()}
    if language in _SCRIPTS_OF:
        foreign = sum(many for one, many in letters.items() if _script(one) not in _SCRIPTS_OF[language])
        if 2 * foreign > sum(letters.values()):
            return f"written in another script than {language!r}"
    if language is None or len(split_words(caption)) < _LEAST_WORDS_FOR_LANGUAGE:
        return ""
    probabilities = dict(_identifier().rank(caption))
    # Of a language that py3langid does not know only the script is checked.
    if probabilities.get(language, 1.0) < _LEAST_PROBABILITY:
        return f"{max(probabilities, key=probabilities.__getitem__)!r}, not {language!r}"
    return ""


_FAULTS = {"refusal": _refusal, "echo": _echo, "repetition": _repetition, "language": _language}


def _script(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0]


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ImportError("py3langid is not installed. Run: pip install 'holistic-clip-hf[captions]'") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _segments(caption: str, form: str) -> list[str]:
    """Sentences, items or the phrase, with what stands between them: joined, they are the caption again."""
    if form == "phrase":
        return [caption]
    if form == "list":
        return re.split(rf"(?<=[{COMMAS}])", caption.rstrip(COMMAS + " "))
    starts, place = [0], 0
    for sentence in split_sentences(caption):
        place = caption.index(sentence, place)
        if place and _ends_sentence(caption[max(starts[-1], place - _LONGEST_END) : place].strip()):
            starts.append(place)
        place += len(sentence)
    return [caption[start:end] for start, end in zip(starts, [*starts[1:], len(caption)], strict=True)]


def _key(part: str) -> str:
    return " ".join(split_words(part.casefold()))


def _whole_parts(parts: list[str], finished: bool, form: str) -> list[str]:
    """`parts` without an unfinished last one.

    A captioner that stopped by itself may well leave out the full stop of its only sentence.
    """
    last = parts[-1].strip()
    if form != "sentences":
        return parts if finished else parts[:-1]
    if finished and len(parts) == 1:
        return [] if last[-1:] in tuple(_OPEN_ENDS) else parts
    is_whole = _ends_sentence(last) and (finished or not re.search(r"\d\.\Z", last))
    return parts if is_whole else parts[:-1]


def _ends_sentence(text: str) -> bool:
    """Whether a sentence ends where `text` does: not after an ellipsis, "Dr.", an initial, or a number on its own."""
    backwards = re.match(r"[\W_]*", text[::-1])
    marks = backwards[0] if backwards else ""
    if not any(mark in _SENTENCE_ENDS for mark in marks) or ".." in marks or "…" in marks:
        return False
    word = text[: len(text) - len(marks)].rpartition(" ")[2].lstrip("\"'([“‘«")
    is_initial = len(word) == 1 and word.isascii() and word.isupper()
    is_number = text.strip(".) ").isdecimal()
    return "." not in marks or not (is_initial or is_number or word.casefold() in _NO_ENDS)


def _cuts(parts: list[str], whole: list[str], kept: int, form: str) -> str:
    """What was cut away, in words."""
    cuts = []
    if len(whole) < len(parts):
        cuts.append(f"cut an unfinished end: {parts[-1].strip()[:40]!r}")
    if repeats := len(whole) - kept:
        cuts.append(f"cut {repeats} repeated {_PART[form]}{'s' if repeats > 1 else ''}")
    return "; ".join(cuts)
