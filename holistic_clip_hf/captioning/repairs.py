# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""What a captioner wraps around its caption, taken off: thinking, chat, its prompt, Markdown, quotes, announcements.

Every pattern is tried at the start of a text or of a line, or is bounded, so that 100 kB take milliseconds.
"""

import re
import string
from itertools import islice

from .perspectives import Perspective

COMMAS = ",，、;；"
# Control characters become spaces; what is not seen (zero-width spaces, soft hyphens, byte order marks) goes, as does
# what stands for a broken character.
_NO_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), " ") | {10: "\n", 13: "\n"}
_NO_CONTROLS |= dict.fromkeys((0xAD, 0x200B, 0x2060, 0xFEFF, 0xFFFD), "")

# Han, kana, Thai, Lao, Burmese and Khmer put no spaces between words.
_SPACELESS = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_MARKS = string.punctuation + "“”‘’«»„…–—·•¿¡。，、！？；：（）「」『』【】《》।۔؟،"

_WORD = re.compile(r"\w+")
_SPECIAL_TOKEN = re.compile(r"<\|[^<>|\s]{1,40}\|>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|image)>|\[/?INST\]")
# A line that starts with who speaks, or is nothing else, as chat templates decode; LLaVA's stand within the line.
_TURN = re.compile(
    r"^[ \t]*(?:(?P<user>(?i:user|### ?human|### ?instruction))|(?i:(?:### ?)?assistant|### ?response))[ \t]*(?::|$)"
    r"|\b(?:(?P<USER>USER)|ASSISTANT):",
    re.MULTILINE,
)
_LINE_MARKER = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|[-*+•>][ \t]+|\d{1,3}[.)][ \t]+)", re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*```.*$", re.MULTILINE)
_ITALIC = re.compile(r"(?<![\w*])\*(?=\S)([^*\n]{1,200})(?<=\S)\*(?![\w*])")

_KIND = r"(?:captions?|descriptions?|summary|answer|response|output|list|nouns?|keywords|words|phrases?|sentences?)"
_LABEL = r"(?:captions?|descriptions?|summary|answer|response|output|nouns|keywords|alt text|main object|background)"
_LABEL_OF = r"(?:the|a|an|image|photo|picture|detailed|short|brief|one|sentence|list|of)"
_WRAPPINGS = (
    # "Sure!", "Of course,"
    re.compile(r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|alright)\b\s*[,.!:]+\s*", re.IGNORECASE),
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
    """The caption in an answer, on one line; empty if there is none. A text that came with its image is only tidied.

    >>> repair("Sure! Here is a short caption:\\n\\n**\\"A dog on grass\\"**", Perspective("short", "Describe it."))
    'A dog on grass'
    """
    text = _readable(text)
    if perspective.prompt is None:
        return " ".join(text.split())
    text = _without_prompt(_without_chat(_without_thinking(text)), perspective.prompt)
    text = _without_wrappings(_without_markdown(text).strip())
    form = perspective.answer.form
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if form == "list" and len(lines) > 1:
        text = ", ".join(line.rstrip(COMMAS + ". ") for line in lines)
    text = " ".join(text.split())
    return text if form == "sentences" else _without_full_stop(text)


def split_words(text: str) -> list[str]:
    """Words without the marks around them; each character counts as one in scripts that put no spaces between words.

    >>> split_words('A "red" sail-boat, 停泊.')
    ['A', 'red', 'sail-boat', '停', '泊']
    """
    words = (word.strip(_MARKS) for word in _SPACELESS.sub(r" \g<0> ", text).split())
    return [word for word in words if word]


def _readable(text: str) -> str:
    """Without control characters, byte order marks, and halves of characters, which no file in UTF-8 can hold."""
    paired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return paired.replace("\r\n", "\n").translate(_NO_CONTROLS)


def _without_thinking(text: str) -> str:
    """What follows the last thinking block; nothing where it never ended."""
    for name in ("think", "thinking"):
        text = text.rpartition(f"</{name}>")[2].partition(f"<{name}>")[0]
    return text


def _without_chat(text: str) -> str:
    """The first answer of a dialogue that the captioner repeated or went on with; all where nobody is named."""
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
    """Without the prompt in front, however often it stands there; of nothing but the prompt, one is left."""
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


def _without_wrappings(text: str) -> str:
    """Without announcements and labels in front, farewells behind, and quotes around."""
    lines = text.splitlines()
    while len(lines) > 1 and (not lines[-1].strip() or _FAREWELL.match(lines[-1].strip())):
        lines.pop()
    text = "\n".join(lines)
    for _ in range(_MOST_WRAPPINGS):
        before, text = text, _without_quotes(text)
        for wrapping in _WRAPPINGS:
            if match := wrapping.match(text):
                text = text[match.end() :]
        if text == before:
            break
    return text


def _without_quotes(text: str) -> str:
    """Without quotes around the whole, or before it where the end is missing; quotes within the text stay."""
    first, last = text[:1], _QUOTES.get(text[:1])
    if last is None or len(text) < 2:
        return text
    inner = text[1:]
    if inner.endswith(last) and first not in inner[:-1] and last not in inner[:-1]:
        return inner[:-1].strip()
    # An apostrophe may well begin a text ('tis); other quotes that never end are what is left of a cut answer.
    return text if first in "'‘" or last in inner else inner.strip()


def _without_full_stop(text: str) -> str:
    """Of a phrase or a list; "U.S." and "..." keep theirs."""
    last_word = text.rpartition(" ")[2]
    return text[:-1] if last_word.endswith(".") and last_word.count(".") == 1 and len(last_word) > 2 else text
