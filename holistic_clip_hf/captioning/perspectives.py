# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Perspectives: what a captioner is asked about an image, how, and what an answer must look like. Read from YAML."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..storage import field_names, read_yaml, require_keys, shown

DEFAULT_FILE = Path(__file__).with_name("perspectives.yaml")
FORMS = ("sentences", "phrase", "list")


@dataclass(frozen=True)
class Answer:
    """Form of a valid answer.

    Args:
        form: Form of the answer. `sentences` end with a full stop, a `phrase` does not, and a `list` has phrases
            between commas. An unfinished sentence or last phrase is cut away.
        min_words, max_words: Limits of the whole answer. In scripts without spaces between words, such as Chinese,
            Japanese and Thai, each character counts as one.
        language: ISO 639-1 (`en`); `None` takes any.

    Raises:
        ValueError: a field that is out of range.
    """

    form: str = "sentences"
    min_words: int = 1
    max_words: int = 1_000
    language: str | None = "en"

    def __post_init__(self) -> None:
        counts = (self.min_words, self.max_words)
        # YAML reads `no` as false.
        is_language = self.language is None or (
            _is_text(self.language) and re.fullmatch("[a-z]{2}", self.language) is not None
        )
        checks = {
            f"form: one of {', '.join(FORMS)}": self.form in FORMS,
            "min_words: from 1 to `max_words`": all(map(_is_whole, counts)) and 1 <= self.min_words <= self.max_words,
            "language: two small letters, between quotes if they are `no`, or null": is_language,
        }
        _require(self, checks)


@dataclass(frozen=True)
class Perspective:
    """One kind of caption.

    Args:
        name: Name of its captions. A branch of the same name reads them.
        prompt: Question to the captioner; `None` if the text comes with the image, as web text does, which is
            rarely in sentences: its `answer` should be a `phrase`.
        max_new_tokens: Budget of an answer, in tokens of the captioner.
        temperature: 0 takes the most likely token each time.
        top_p: Share of nucleus sampling, without effect at temperature 0.
        answer: Form of a valid answer.
        captioner: Name of the only captioner that is asked this. Default: any.

    Raises:
        ValueError: a field that is out of range.
    """

    name: str
    prompt: str | None
    max_new_tokens: int = 77
    temperature: float = 0.0
    top_p: float = 1.0
    answer: Answer = field(default_factory=Answer)
    captioner: str | None = None

    def __post_init__(self) -> None:
        checks = {
            "name: a word": _is_text(self.name) and self.name == self.name.strip(),
            "prompt: a text or null": self.prompt is None or _is_text(self.prompt),
            "captioner: a name or null": self.captioner is None or _is_text(self.captioner),
            "max_new_tokens: at least 1": _is_whole(self.max_new_tokens) and self.max_new_tokens >= 1,
            "temperature: 0 or more": _is_number(self.temperature) and self.temperature >= 0,
            "top_p: above 0, at most 1": _is_number(self.top_p) and 0 < self.top_p <= 1,
            "answer: an `Answer`": isinstance(self.answer, Answer),
        }
        _require(self, checks)

    @property
    def prompt_hash(self) -> str:
        """Hash of prompt, budget and sampling in 12 hexadecimal digits: another question, other captions."""
        asked = [self.prompt, self.max_new_tokens, float(self.temperature), float(self.top_p)]  # YAML has 0 and 0.0
        return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()[:12]


def question_hash(perspective: Perspective, settings: Mapping[str, Any]) -> str:
    """Return the `prompt_hash` of rows: that of the perspective, or with settings one of both.

    Args:
        settings: Options that a captioner is told beside the question, such as to think or not.
    """
    if not settings:
        return perspective.prompt_hash
    asked = [perspective.prompt_hash, dict(settings)]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=repr).encode()).hexdigest()[:12]


def seed_of(image_id: str, perspective: Perspective) -> int:
    """Return the seed, below 2**31, by which an answer about an image is drawn.

    It depends on the row alone: asked again, after a kill or among other images, the same answer is drawn.
    """
    row = "\n".join([image_id, perspective.name, perspective.prompt_hash])
    return int.from_bytes(hashlib.sha256(row.encode("utf-8", "surrogatepass")).digest()[:4], "big") >> 1


def load_perspectives(path: str | Path | None = None, names: Sequence[str] = ()) -> list[Perspective]:
    """Return the perspectives of a file (default: the ones that come with the package), all or those of `names`, in
    order.

    Raises:
        ValueError: no such file, not YAML, unknown or missing fields, values out of range, or a name that the file
            lacks or has twice.
    """
    path = DEFAULT_FILE if path is None else Path(path)
    if not path.is_file():
        raise ValueError(
            f"`path` is {path}, which is not a file; expected YAML as in {DEFAULT_FILE}. Correct the path."
        )
    entries = read_yaml(path)
    if not isinstance(entries, list) or not entries:
        got = "nothing" if not entries else "no list"
        raise ValueError(f"{path} holds {got}; expected a list of perspectives, `- name: ...`. Correct the file.")
    read = [_read_perspective(entry, f"Perspective {place} of {path}") for place, entry in enumerate(entries)]
    known = {perspective.name: perspective for perspective in read}
    if len(known) < len(read):
        twice = sorted({each.name for each in read if sum(other.name == each.name for other in read) > 1})
        raise ValueError(f"{path}: got {twice} twice; expected every name once. Rename one of each.")
    return [known[name] for name in _require_known(names, known, path)] if names else read


def asked(perspectives: Iterable[Perspective], captioner: str | None = None) -> list[Perspective]:
    """Select the perspectives that a captioner is asked: they have a prompt, and not another captioner's name.

    Without a name, those of all captioners.
    """
    return [
        each
        for each in perspectives
        if each.prompt is not None and (captioner is None or each.captioner in (None, captioner))
    ]


def _require_known(names: Sequence[str], known: dict[str, Perspective], path: Path) -> Sequence[str]:
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"`names` has {unknown}; expected some of {', '.join(known)}, which {path} has. Correct them."
        )
    return names


def _read_perspective(entry: Any, where: str) -> Perspective:
    # Texts that are given, not asked for, have `prompt: null`.
    values = require_keys(where, entry, field_names(Perspective), ["name", "prompt"])
    answer = require_keys(f"`answer` of {where}", values.pop("answer", {}), field_names(Answer))
    try:
        return Perspective(**values, answer=Answer(**answer))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _require(thing: Answer | Perspective, checks: dict[str, bool]) -> None:
    for rule, holds in checks.items():
        if not holds:
            name, _, expected = rule.partition(": ")
            raise ValueError(f"`{name}` is {shown(getattr(thing, name))}; expected {expected}. Correct it.")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def prompt_of(perspective: Perspective) -> str:
    """Return what a captioner is asked.

    Raises:
        ValueError: nothing, as the text comes with the image.
    """
    if perspective.prompt is None:
        raise ValueError(
            f"`perspective` is {perspective.name!r}, which has no prompt; expected what a captioner can be asked. "
            "Leave it out."
        )
    return perspective.prompt
