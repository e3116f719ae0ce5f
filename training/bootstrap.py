"""Relative gains of ways to ask, with intervals by a bootstrap over queries and replicates at once.

Axes: Q queries of a replicate, R replicates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from holistic_clip_hf.evaluation.attributes import FORMS

DRAWS = 1_000  # as those of `ranking.bootstrap_interval`
ALL = "all"  # forms, each of which counts alike


class Entry(NamedTuple):
    """A method and a way to ask it."""

    method: str
    way: str


class Gain(NamedTuple):
    """Relative difference of two means, with its 95 % interval, and the number of replicates."""

    value: float
    low: float
    high: float
    replicates: int

    @property
    def text(self) -> str:
        """Percent, with the interval."""
        return f"{100 * self.value:+.1f} % [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"

    def __str__(self) -> str:
        return f"**{self.text}**" if self.low > 0 or self.high < 0 else self.text


@dataclass(frozen=True)
class Found:
    """Recalls of a study.

    Args:
        queries: Queries of each replicate, as `training.attribute_study` writes them.
        recalls: Recall of each of them, by entry and replicate.
    """

    queries: Mapping[int, Sequence[Mapping[str, Any]]]
    recalls: Mapping[Entry, Mapping[int, Sequence[float]]]
    _known: dict[tuple[Entry, int, str], np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def mean(self, entry: Entry, column: str) -> float:
        """Return the mean over replicates."""
        return float(np.mean([self._means(entry, replicate, column)[0] for replicate in self.recalls[entry]]))

    def facets(self, entry: Entry, form: str) -> dict[str, float]:
        """Return the mean recall of each facet, or pair of facets, of a form."""
        names = sorted({each["facets"] for asked in self.queries.values() for each in asked if each["form"] == form})
        found = {}
        for name in names:
            rows = {each: self._groups(each).get((form, name)) for each in self.recalls[entry]}
            means = [np.mean(np.array(self.recalls[entry][each])[row]) for each, row in rows.items() if row]
            found[name] = float(np.mean(means))
        return found

    def gain(self, entry: Entry, over: Entry, column: str) -> Gain:
        """Compare two entries in the replicates that both have; each draw takes the same queries and replicates."""
        shared = sorted(self.recalls[entry].keys() & self.recalls[over].keys())
        if not shared:
            return Gain(np.nan, np.nan, np.nan, 0)
        drawn = np.random.default_rng(0).multinomial(len(shared), [1 / len(shared)] * len(shared), DRAWS)
        # The first row is the sample itself, the others are draws of it.
        weights = np.vstack([np.ones(len(shared)), drawn]) / len(shared)
        mine, theirs = (
            (weights * np.stack([self._means(each, replicate, column) for replicate in shared], axis=1)).sum(axis=1)
            for each in (entry, over)
        )
        relative = mine / theirs - 1
        low, high = np.quantile(relative[1:], [0.025, 0.975])
        return Gain(float(relative[0]), float(low), float(high), len(shared))

    def _means(self, entry: Entry, replicate: int, column: str) -> np.ndarray:
        """Return the mean over groups of queries, of the sample and of each draw of it: (1 + DRAWS,)."""
        forms = FORMS if column == ALL else (column,)
        for form in forms:
            if (entry, replicate, form) not in self._known:
                self._known[entry, replicate, form] = self._form_means(entry, replicate, form)
        return np.mean([self._known[entry, replicate, form] for form in forms], axis=0)

    def _form_means(self, entry: Entry, replicate: int, form: str) -> np.ndarray:
        values = np.array(self.recalls[entry][replicate])
        means = []
        for (of_form, _), rows in self._groups(replicate).items():
            if of_form == form:
                counts = self._draws[:, [self._columns[self.queries[replicate][row]["query"]] for row in rows]]
                total = counts.sum(axis=1)
                # A draw without any query of a small group leaves the group as it is.
                counts = np.where(total[:, None] > 0, counts, 1)
                means.append((counts * values[rows]).sum(axis=1) / counts.sum(axis=1))
        return np.mean(means, axis=0)

    def _groups(self, replicate: int) -> dict[tuple[str, str], list[int]]:
        groups: dict[tuple[str, str], list[int]] = {}
        for row, query in enumerate(self.queries[replicate]):
            groups.setdefault((query["form"], query["facets"]), []).append(row)
        return groups

    @cached_property
    def _columns(self) -> dict[str, int]:
        texts = dict.fromkeys(each["query"] for asked in self.queries.values() for each in asked)
        return {text: column for column, text in enumerate(texts)}

    @cached_property
    def _draws(self) -> np.ndarray:
        """Number of times that each query is drawn, which is the same in all replicates, since all ask it."""
        groups: dict[tuple[str, str], set[str]] = {}
        for asked in self.queries.values():
            for query in asked:
                groups.setdefault((query["form"], query["facets"]), set()).add(query["query"])
        draws, generator = np.ones((1 + DRAWS, len(self._columns))), np.random.default_rng(0)
        for _, texts in sorted(groups.items()):
            columns = [self._columns[text] for text in sorted(texts)]
            draws[1:, columns] = generator.multinomial(len(columns), [1 / len(columns)] * len(columns), DRAWS)
        return draws
