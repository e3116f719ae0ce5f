# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Thinking, tags and JSON around an answer: what reasoning models and structured output put about the words.

Every function reads its text once or a bounded number of times, and takes any text.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

# Where thinking begins and ends, as the chat templates of reasoning models spell it.
THINKING = (
    *((f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "reasoning", "seed:think")),
    ("◁think▷", "◁/think▷"),  # Kimi-VL
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # Harmony, of gpt-oss
)

_DO = (
    r"(?:look|see|think|start|begin|check|examine|analy[sz]e|describe|break|try|consider|figure|take|first|carefully"
    r"|write|focus|identify|observe|note|respond|answer|craft|recall|work|go)\b"
)
_FILLERS = r"(?:(?:got it|okay|ok|alright|all right|hmm+|so|well|first|now|right|wait)\b[,.! ]+){0,3}"
# Said about the task and not about the image. In a screenshot a user may ask within a sentence.
_ABOUT_THE_TASK = re.compile(
    rf"(?:\A|[.!?\n]\s{{0,4}}){_FILLERS}"
    r"the user (?:wants|asks|asked|is asking|would like|requests|requested|has asked|is requesting)\b"
    r"|\bi (?:should|need to|must|have to)"
    r" (?:describe|write|mention|focus|keep it|answer|respond|avoid|include|list)\b",
    re.IGNORECASE,
)
# "Got it, let me look at the image." An announcement ends in a colon: "Let me describe it: a dog."
_FIRST_THOUGHT = re.compile(
    rf"{_FILLERS}(?:let me|let's|let us|i will|i'll|i need to|i should|i have to) {_DO}(?![^.!?\n]{{0,80}}:)",
    re.IGNORECASE,
)
ANNOUNCEMENT = re.compile(
    rf"(?:got it\b[,.! ]+)?(?:let me|let's|let us|i will|i'll) {_DO}[^.:\n]{{0,80}}:\s*", re.IGNORECASE
)
_TAG = re.compile(
    r"<(?P<end>/?)(?P<name>final_answer|answer|caption|description|response|output|result|sentence)>", re.IGNORECASE
)
_BOXED = re.compile(r"\$?\\boxed\{")
_KEYS = ("caption", "description", "answer", "response", "output", "text", "content", "result", "sentence")
_FIRST_TEXT = re.compile(r"""(?:\{\s*["'][^"'\n]{1,60}["']\s*:\s*)?(?P<list>\[\s*)?(?=["'])""")
_NAMED_TEXT = re.compile(rf"""["'](?:{"|".join(_KEYS)})["']\s*:\s*(?P<list>\[\s*)?(?=["'])""", re.IGNORECASE)
_NEXT_ITEM = re.compile(r"""\s*,\s*(?=["'])""")
_END_OF_PYTHON_TEXT = re.compile(r"'(?=\s*(?:[,}\]]|\Z))")
_DEEPEST = 4  # levels of JSON; a caption is not further down


def without_thinking(text: str) -> str:
    """Return what follows the last thinking block, and nothing if that block never ended."""
    for begin, end in THINKING:
        text = text.rpartition(end)[2].partition(begin)[0]
    return text


def ends_within_thinking(text: str) -> bool:
    """Tell whether a block of thinking begins in a text that never ends, as in prompts that make a model think."""
    return any(begin in text.rpartition(end)[2] for begin, end in THINKING)


def thought_in(text: str, finished: bool) -> str:
    """Return the words by which thinking without marks around it is known, or nothing.

    Templates open the block in the prompt, and servers hand on what follows. An answer that ended in time is doubted
    less: it may begin with a remark.
    """
    said = _without_tags(without_thinking(text).replace("’", "'").strip())
    if not said and ends_within_thinking(text):
        return next(begin for begin, end in THINKING if begin in text.rpartition(end)[2])
    task, first = _ABOUT_THE_TASK.search(said), _FIRST_THOUGHT.match(said)
    if finished:
        return task[0].strip() if task and (first or task.start() == 0) else ""
    found = task or first
    return found[0].strip(".!? \n") if found else ""


def without_structure(text: str, name: str) -> str:
    r"""Return the words within tags, `\boxed{}` or JSON; a text that has none of them is returned as it is.

    Args:
        name: Name of the perspective, by which a member of an object may be called.
    """
    text = _without_tags(text.strip())
    if (box := _BOXED.match(text)) and text.rstrip(" .$").endswith("}"):
        text = text[box.end() :].rstrip(" .$")[:-1]
    if text[:1] not in ("{", "["):
        return text
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(text)
    except (ValueError, RecursionError):  # not JSON, or cut short
        return _torn_text(text)
    said = _said(value, name, _DEEPEST)
    return text if said is None else said


def _without_tags(text: str) -> str:
    tags = list(_TAG.finditer(text))
    begins = [tag for tag in tags if not tag["end"]]
    answers = [tag for tag in begins if "answer" in tag["name"].casefold()]  # after reasoning that has no tags
    if answers or (begins and begins[0].start() == 0):
        begin = answers[-1] if answers else begins[0]
        name = begin["name"].casefold()
        ends = [tag.start() for tag in tags if tag["end"] and tag["name"].casefold() == name]
        return text[begin.end() : next((end for end in ends if end >= begin.end()), len(text))].strip()
    if tags and tags[-1]["end"] and tags[-1].end() == len(text):
        return text[: tags[-1].start()].strip()
    return text


def _said(value: Any, name: str, depth: int) -> str | None:
    """Return the words in a value of JSON, an item to a line, or `None` if it is not clear which they are."""
    if isinstance(value, str):
        return value
    if depth == 0:
        return None
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return "\n".join(value)
        return _said(value[0], name, depth - 1) if len(value) == 1 else None
    if isinstance(value, Mapping) and value:
        members = {key.casefold().replace(" ", "_"): member for key, member in value.items()}
        key = next((key for key in (name.casefold(), *_KEYS) if key in members), None)
        if key is None and len(members) > 1:
            return None
        return _said(members[key] if key is not None else next(iter(members.values())), name, depth - 1)
    return None


def _torn_text(text: str) -> str:
    """Return the words of an object or list that is cut short or has the quotes of Python, an item to a line.

    A text that is neither is returned as it is.
    """
    begin = _NAMED_TEXT.search(text) if text[0] == "{" else None
    begin = begin or _FIRST_TEXT.match(text)
    if begin is None or not begin[0]:
        return text
    items, place = [], begin.end()
    while True:
        item, place = _torn_string(text, place)
        items.append(item)
        following = _NEXT_ITEM.match(text, place) if begin["list"] else None
        if following is None:
            return "\n".join(items)
        place = following.end()


def _torn_string(text: str, begin: int) -> tuple[str, int]:
    """Return the string whose quote is at `begin`, or as much of it as was written, with the place where it ends."""
    if text[begin] == '"':
        for closed in (text, text.rstrip("\\") + '"'):
            try:
                said, end = json.JSONDecoder(strict=False).raw_decode(closed, begin)
            except ValueError:  # no end, or an escape that JSON has not
                continue
            return said, end
    mark = _END_OF_PYTHON_TEXT.search(text, begin + 1) if text[begin] == "'" else None
    end = mark.start() if mark else len(text)
    return text[begin + 1 : end], end + 1
