# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Cleaning of answers: what is wrapped around a caption is taken off, the rest is cut to whole sentences and judged.

What comes off is thinking, chat, the prompt, Markdown, JSON, quotes and announcements. An answer that is not a caption
gets the reason in words. Every pattern is tried at the start of a text or of a line, or is bounded, so that 100 kB
take milliseconds.
"""

import re
import string
import unicodedata
from collections import Counter
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

from ..processing_holistic_clip import is_blank
from ..storage import import_extra
from ..words import _MARKS, _WORD, COMMAS, split_sentences, split_words
from .perspectives import Answer, Perspective
from .unwrapping import ANNOUNCEMENT, thought_in, without_structure, without_thinking

# Control characters become spaces; what is not seen (zero-width spaces, soft hyphens, byte order marks) goes, as does
# what stands for a broken character.
_NO_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), " ") | {10: "\n", 13: "\n"}


_NO_CONTROLS |= dict.fromkeys((0xAD, 0x200B, 0x2060, 0xFEFF, 0xFFFD), "")


_SPECIAL_TOKEN = re.compile(r"<\|[^<>|\s]{1,40}\|>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|image)>|\[/?INST\]")
# A line that starts with who speaks, or is nothing else, as chat templates decode; LLaVA's stand within the line.
_TURN = re.compile(
    r"^[ \t]*(?:(?P<user>(?i:user|### ?human|### ?instruction))|(?i:(?:### ?)?assistant|### ?response))[ \t]*(?::|$)"
    r"|\b(?:(?P<USER>USER)|ASSISTANT):",
    re.MULTILINE,
)
_LINE_MARKER = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|[-*+•>][ \t]+|\d{1,3}[.)][ \t]+)", re.MULTILINE)
# A line of its own, with the language or without, or marks around an answer on one line.
_FENCE = re.compile(
    r"^[ \t]*```(?:[ \t]*[\w+-]{0,20}[ \t]*$|(?:json|text|txt|plaintext|markdown|xml)\b)?|```[ \t]*$", re.MULTILINE
)
_ITALIC = re.compile(r"(?<![\w*])\*(?=\S)([^*\n]{1,200})(?<=\S)\*(?![\w*])")
_KIND = r"(?:captions?|descriptions?|summary|answer|response|output|list|nouns?|keywords|words|phrases?|sentences?)"
_LABEL = r"(?:captions?|descriptions?|summary|answer|response|output|nouns|keywords|alt text|main object|background)"
_LABEL_OF = r"(?:the|a|an|image|photo|picture|detailed|short|brief|one|sentence|list|of)"
_WRAPPINGS = (
    # "Sure!", "Of course,"
    re.compile(r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|alright)\b\s*[,.!:]+\s*", re.IGNORECASE),
    ANNOUNCEMENT,  # "Got it, let me describe the image:"
    # "Here is a detailed description of the image:"
    re.compile(
        rf"(?:here(?:['’]s| is| are)|below (?:is|are)|the following (?:is|are))\b[^.:\n]{{0,80}}?\b{_KIND}\b"
        r"[^.:\n]{0,120}(?::\s*|\.?[ \t]*\n\s*)",
        re.IGNORECASE,
    ),
    # "Caption:", "Short description:", "The nouns in this image are:"
    re.compile(
        rf"(?:{_LABEL_OF}[ -]){{0,4}}{_LABEL}(?: (?:of|in|for) [^.:\n]{{1,40}}?)?(?: is| are)?\s*:\s*", re.IGNORECASE
    ),
)
_FAREWELL = re.compile(
    r"(?:please )?(?:let me know|feel free|(?:i )?hope (?:this|that) helps|is there anything else|would you like me"
    r"|do you want me)\b",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "「": "」", "『": "』", "`": "`"}
_MOST_WRAPPINGS = 8  # one of each and some to spare; each costs a copy of the text


def repair(text: str, perspective: Perspective) -> str:
    """Return the caption in an answer, on one line; empty without any. A text that came with its image is only
    tidied.

    >>> repair("Sure! Here is a short caption:\\n\\n**\\"A dog on grass\\"**", Perspective("short", "Describe it."))
    'A dog on grass'
    """
    text = _readable(text)
    if perspective.prompt is None:
        return " ".join(text.split())
    text = _without_prompt(_without_chat(without_thinking(text)), perspective.prompt)
    text = _without_wrappings(_without_markdown(text).strip(), perspective.name)
    form = perspective.answer.form
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if form == "list" and len(lines) > 1:
        text = ", ".join(line.rstrip(COMMAS + ". ") for line in lines)
    text = " ".join(text.split())
    return text if form == "sentences" else _without_full_stop(text)


def _readable(text: str) -> str:
    """Drop control characters, byte order marks, and halves of characters that UTF-8 cannot hold."""
    paired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return paired.replace("\r\n", "\n").translate(_NO_CONTROLS)


def _without_chat(text: str) -> str:
    """Return the first answer of a dialogue that the captioner repeated or went on with; all where nobody is named."""
    text = _SPECIAL_TOKEN.sub("", text)
    turns = list(_TURN.finditer(text))
    starts = [0, *(turn.end() for turn in turns)]
    ends = [*(turn.start() for turn in turns), len(text)]
    asked = [False, *(turn["user"] is not None or turn["USER"] is not None for turn in turns)]
    spoken = [(text[start:end].strip(), user) for start, end, user in zip(starts, ends, asked, strict=True)]
    answers = [said for said, user in spoken if said and not user]
    questions = [said for said, user in spoken if said and user]
    return next(iter(answers or questions), "")


def _without_prompt(text: str, prompt: str) -> str:
    """Drop the prompt in front, however often it is repeated. Of nothing but the prompt, one copy is left."""
    asked = [word.casefold() for word in _WORD.findall(prompt)]
    place = 0
    while asked:
        matches = list(islice(_WORD.finditer(text, place), len(asked)))
        if [match[0].casefold() for match in matches] != asked:
            break
        if not text[matches[-1].end() :].strip(_MARKS + string.whitespace):
            return prompt
        place = matches[-1].end()
    return text[place:].lstrip(".:,;!?-*" + string.whitespace) if place else text


def _without_markdown(text: str) -> str:
    text = _LINE_MARKER.sub("", _FENCE.sub("", text)).replace("**", "")
    return _ITALIC.sub(r"\1", text)


def _without_wrappings(text: str, name: str) -> str:
    """Drop announcements and labels in front, farewells behind, and quotes, tags and JSON around."""
    lines = text.splitlines()
    while len(lines) > 1 and (not lines[-1].strip() or _FAREWELL.match(lines[-1].strip())):
        lines.pop()
    text = "\n".join(lines)
    for _ in range(_MOST_WRAPPINGS):
        before, text = text, _without_quotes(text)
        if (inner := without_structure(text, name)) != text:
            text = _without_markdown(inner).strip()
        for wrapping in _WRAPPINGS:
            if match := wrapping.match(text):
                text = text[match.end() :]
        if text == before:
            break
    return text


def _without_quotes(text: str) -> str:
    """Drop quotes around the whole, or before it if the end is missing. Quotes within the text stay."""
    first, last = text[:1], _QUOTES.get(text[:1])
    if last is None or len(text) < 2:
        return text
    inner = text[1:]
    if inner.endswith(last) and first not in inner[:-1] and last not in inner[:-1]:
        return inner[:-1].strip()
    # An apostrophe may well begin a text ('tis); other quotes that never end are what is left of a cut answer.
    return text if first in "'‘" or last in inner else inner.strip()


def _without_full_stop(text: str) -> str:
    """Drop the full stop of a phrase or a list; "U.S." and "..." keep theirs."""
    last_word = text.rpartition(" ")[2]
    return text[:-1] if last_word.endswith(".") and last_word.count(".") == 1 and len(last_word) > 2 else text


class Cleaned(NamedTuple):
    """A caption and its status, as in `rows`; `error` says what was cut, or why it is not a caption."""

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
    """Return the caption in an answer; `finished` is false where the captioner's budget ended it. Takes any text.

    A rejected answer keeps its words, so that they can be looked at. Raises `ImportError` where the perspective asks
    for a language and py3langid is not installed.

    >>> clean_answer("A dog sits on grass. Behind it a", False, Perspective("detail", "Describe it.")).caption
    'A dog sits on grass.'
    """
    caption, answer = repair(text, perspective), perspective.answer
    if perspective.prompt is not None and (thought := thought_in(text, finished)):
        return Cleaned(caption, "unfinished", f"thinking that did not end in a caption: {thought!r}")
    if finished and (not split_words(caption) or is_blank(caption)):
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
    """Find a caption that is the prompt or a part of it; `repair` cuts it from the front of a longer one."""
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
    langid = import_extra("py3langid.langid", "captions")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def _segments(caption: str, form: str) -> list[str]:
    """Return sentences, items or the phrase, with what stands between them: joined, they are the caption again."""
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
    """Return `parts` without an unfinished last one.

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
    """Tell whether a sentence ends where `text` does: not after an ellipsis, "Dr.", an initial, or a number on its
    own.
    """
    backwards = re.match(r"[\W_]*", text[::-1])
    marks = backwards[0] if backwards else ""
    if not any(mark in _SENTENCE_ENDS for mark in marks) or ".." in marks or "…" in marks:
        return False
    word = text[: len(text) - len(marks)].rpartition(" ")[2].lstrip("\"'([“‘«")
    is_initial = len(word) == 1 and word.isascii() and word.isupper()
    is_number = text.strip(".) ").isdecimal()
    return "." not in marks or not (is_initial or is_number or word.casefold() in _NO_ENDS)


def _cuts(parts: list[str], whole: list[str], kept: int, form: str) -> str:
    """Say what was cut away."""
    cuts = []
    if len(whole) < len(parts):
        cuts.append(f"cut an unfinished end: {parts[-1].strip()[:40]!r}")
    if repeats := len(whole) - kept:
        cuts.append(f"cut {repeats} repeated {_PART[form]}{'s' if repeats > 1 else ''}")
    return "; ".join(cuts)
