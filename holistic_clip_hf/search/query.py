# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Queries: terms of a text or an example image, the one-line language in which people write them, and filters.

    main object: a dog; background: snow^0.5; not style: drawing

Terms stand between semicolons. A term is a text. Before it may stand `not`, to count against, and the name of a
perspective with a colon, to ask one branch alone. Behind it may stand `^` and a number, its weight. Text in double
quotes is taken as it stands.

    but palette: red; but not style: drawing

Beside an example image, `but` before a term says that its perspective is wanted otherwise: the example is compared in
all others, and the text decides in this one.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import translate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

# In place of a perspective: all branches, as the model fuses them.
from ..evaluation.records import FUSED
from ..storage import shown
from ..words import closest

Value = str | int | float | bool


@dataclass(frozen=True)
class Filter:
    """Images that meet every condition.

    Args:
        columns: Value for each column, or a list of values of which one is enough.
        path: a pattern, or several of which one is enough, for the whole image id: `animals/*`. `*` also stands for
            slashes; letters count in their case.

    Raises:
        ValueError: an empty list of values or patterns, which no image could meet.

    Example: `Filter({"artist": ["noto", "twemoji"]}, path="animals/*")`.
    """

    columns: Mapping[str, Value | Sequence[Value]] = field(default_factory=dict)
    path: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name, values in {**self.columns, "path": self.path}.items():
            if isinstance(values, Sequence) and len(values) == 0:
                raise ValueError(
                    f"The filter on {shown(name)} is empty, which no image meets. Leave it out, or fill it."
                )

    def mask(self, table: pa.Table, columns: Sequence[str]) -> np.ndarray:
        """Mark the rows of `table` that meet all conditions: (rows,) bool. `columns` are those that may be asked for.

        Raises:
            ValueError: an unknown column, or a value of another type than the column's.
        """
        mask = np.ones(table.num_rows, dtype=bool)
        for name, values in self.columns.items():
            if name not in columns:
                valid = ", ".join(columns) or "none; name `columns` when you index"
                raise ValueError(f"The index has no column {shown(name)} to filter by; expected {valid}.")
            mask &= _is_one_of(name, table[name], values)
        if self.path is not None:
            patterns = [self.path] if isinstance(self.path, str) else self.path
            matches = re.compile("|".join(translate(pattern) for pattern in patterns)).match
            ids = table["image_id"].to_pylist()
            mask &= np.fromiter((matches(image_id) is not None for image_id in ids), dtype=bool, count=len(ids))
        return mask


def _is_one_of(name: str, column: pa.ChunkedArray, values: Value | Sequence[Value]) -> np.ndarray:
    wanted = [values] if isinstance(values, Value) else list(values)
    try:
        # By way of an array of their own type, so that "2024" from a command line finds the number.
        found = pc.is_in(column, value_set=pa.array(wanted).cast(column.type))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"Column {name!r} holds {column.type}; the filter asks for {shown(wanted)}. Match its type."
        ) from error
    return found.to_numpy()


MOST_TERMS = 32  # a query of more is a pasted document
MOST_LETTERS = 4_000  # of a query; a text tower reads a few hundred
# Parsed step by step: one expression for a whole term would try every way to share out its spaces, for minutes.
_PIECE = re.compile(r'"[^"]*"|[^";]+|;')
_NEGATIVE = re.compile(r"not\s+", re.IGNORECASE)
_OTHERWISE = re.compile(r"\s*but\s+", re.IGNORECASE)  # beside an example image alone; else it is a word


@dataclass(frozen=True)
class Term:
    """One wish: a text or an example image, held against one branch or all.

    Args:
        text: Words of what is sought.
        image: Example of it.
        perspective: Branch that decides. Default: all, as the model fuses them.
        weight: Weight of the term; below zero it counts against.
        without: Perspectives in which an example of all branches is not compared.

    Raises:
        ValueError: neither text nor image, both, an empty text, a weight that is zero or not a finite number, or
            perspectives to leave out of what is not an example of all branches.
    """

    text: str | None = None
    image: Image.Image | None = None
    perspective: str = FUSED
    weight: float = 1.0
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.text is None) == (self.image is None):
            raise ValueError("A term has a text or an example image; got both, or neither. Give one of them.")
        if self.text is not None and not self.text.strip():
            raise ValueError("A term has no word; expected a text. Say what is sought, as in `background: snow`.")
        if isinstance(self.weight, bool) or not math.isfinite(self.weight) or self.weight == 0:
            raise ValueError(
                f"The weight of {shown(str(self))} is {self.weight}; expected a finite number above 0, or below 0 to "
                "count against."
            )
        if self.without and (self.image is None or self.perspective != FUSED):
            raise ValueError(
                f"The term {shown(str(self))} leaves out {', '.join(self.without)}; expected that of an example image "
                "of all branches alone. Ask for one or the other."
            )

    def __str__(self) -> str:
        words = "an example image" if self.text is None else self.text
        return words if self.perspective == FUSED else f"{self.perspective}: {words}"


Query = str | Term | Sequence[Term]


def parse_query(text: str, perspectives: Sequence[str], *, like: Image.Image | None = None) -> list[Term]:
    """Read the one-line language; names of perspectives may be written in any case, with spaces for underscores.

    Args:
        text: Query.
        perspectives: Names of the branches.
        like: Example image, which becomes the first term. The text may then be empty, and `but` is a word of the
            language.

    Raises:
        ValueError: no term, an unknown perspective, a weight that is not a number, a quote that does not close, or no
            branch left by which the example could be compared.

    >>> parse_query("main object: a dog; not style: drawing^2", ["main_object", "style"])[1]
    Term(text='drawing', image=None, perspective='style', weight=-2.0, without=())
    """
    parts = _parts(text)
    if like is None:
        if not parts:
            raise ValueError("The query is empty. Say what is sought, as in `a dog` or `background: snow`.")
        return [_parse_term(part, perspectives) for part in parts]
    terms, without = [], dict[str, None]()
    for part in parts:
        otherwise = _OTHERWISE.match(part)
        terms.append(_parse_term(part[otherwise.end() :] if otherwise else part, perspectives))
        if otherwise and terms[-1].perspective != FUSED:
            without[terms[-1].perspective] = None
    if without and len(without) == len(perspectives):
        raise ValueError(
            f"{shown(text)} wants every perspective otherwise than the example; expected one to compare it in. Leave "
            "a `but` or the example out."
        )
    return [Term(image=like, without=tuple(without)), *terms]


def _parts(text: str) -> list[str]:
    """Return the terms of a query as they were written."""
    if len(text) > MOST_LETTERS:
        raise ValueError(f"The query has {len(text):,} letters; expected up to {MOST_LETTERS:,}.")
    if text.count('"') % 2:
        raise ValueError(f"A double quote does not close in {shown(text)}. Close it, or write it twice inside quotes.")
    parts = [part for part in _split(text) if part.strip()]
    if len(parts) > MOST_TERMS:
        raise ValueError(f"The query has {len(parts)} terms; expected up to {MOST_TERMS}.")
    return parts


def as_terms(query: Query, perspectives: Sequence[str]) -> list[Term]:
    """Return the terms of any form of a query, their perspectives spelt as the model has them.

    Raises:
        ValueError: as `parse_query`; no terms.
    """
    if isinstance(query, str):
        return parse_query(query, perspectives)
    terms: list[Any] = [query] if isinstance(query, Term) else list(query)
    if not terms:
        raise ValueError("The query has no terms. Give one or more.")
    return [
        replace(
            term,
            perspective=find_perspective(term.perspective, perspectives),
            without=tuple(find_perspective(name, perspectives) for name in term.without),
        )
        for term in terms
    ]


def find_perspective(name: str, perspectives: Sequence[str]) -> str:
    """Return the perspective that is meant.

    Raises:
        ValueError: no such perspective.
    """
    known = {_plain(perspective): perspective for perspective in (*perspectives, FUSED)}
    found = known.get(_plain(name))
    if found is not None:
        return found
    near = closest(_plain(name), known)
    hint = f" Did you mean {known[near]!r}?" if near else ""
    raise ValueError(
        f"The perspective is {shown(name)}; expected one of {', '.join(known.values())}.{hint} A text that has a "
        "colon itself stands in double quotes."
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.strip()).casefold()


def _split(text: str) -> list[str]:
    """Split at semicolons that are not in quotes; the quotes are known to close."""
    parts = [""]
    for piece in _PIECE.findall(text):
        if piece == ";":
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _parse_term(part: str, perspectives: Sequence[str]) -> Term:
    text = part.lstrip()
    before, quote, rest = text.partition('"')
    if quote:
        quoted, _, after = rest.rpartition('"')
    else:
        before, caret, weight_text = text.partition("^")
        quoted, after = "", caret + weight_text
    negative = _NEGATIVE.match(before)
    before = before[negative.end() :] if negative else before
    name, colon, plain = before.partition(":")
    if not colon:
        name, plain = "", before
    is_term = (
        not set(plain) & set(":^")
        and not (quote and plain.strip())
        and '"' not in quoted.replace('""', "")
        and (not after.strip() or re.fullmatch(r"\^\s*[^\s^\"]*", after.strip()) is not None)
        and "^" not in name
    )
    if not is_term:
        raise ValueError(
            f"{shown(text.strip())} is not a term; expected `a dog`, `background: snow`, `not style: drawing^0.5`. A "
            "text with a colon, semicolon, caret or quote stands in double quotes as a whole."
        )
    words = quoted.replace('""', '"') if quote else plain
    weight = _weight(after.strip()[1:].strip(), part) if after.strip() else 1.0
    perspective = find_perspective(name.strip(), perspectives) if colon else FUSED
    return Term(words.strip(), None, perspective, -weight if negative else weight)


def _weight(text: str, part: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ValueError(
            f"The weight of {shown(part.strip())} is {shown(text)}; expected a number above 0, as in `snow^0.5`. "
            "Write `not` before what counts against."
        )
    return weight
