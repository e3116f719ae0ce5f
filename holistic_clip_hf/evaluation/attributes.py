# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Attribute queries: one trait of an image decides, or two, or one without another, and many images have it.

As in COCO-Facet (https://arxiv.org/abs/2505.15877), an image that is right stands among 99 that are not. There they
are drawn once; here recall is its mean over all draws, in closed form, so that no draw adds noise.

Axes: N images, Q queries, R images that are right for a query.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import combinations, permutations

import torch
from torch import Tensor

from ..storage import stable_number

NUM_NEGATIVES = 99  # of COCO-Facet's cases, section 3 of its paper
ONE, BOTH, WITHOUT = "one trait", "two traits", "one without another"
FORMS = (ONE, BOTH, WITHOUT)


@dataclass(frozen=True)
class Wish:
    """One trait that is asked for, or that is not wanted.

    Args:
        facet: Kind of the trait, such as `colour`.
        text: Words of it.
        is_wanted: False if images that have it are wrong.
    """

    facet: str
    text: str
    is_wanted: bool = True

    def __str__(self) -> str:
        return f"{'' if self.is_wanted else 'not '}{self.facet}: {self.text}"


@dataclass(frozen=True)
class AttributeQuery:
    """Wishes that all have to be met, and the rows of the images that meet them, in order."""

    wishes: tuple[Wish, ...]
    relevant: tuple[int, ...]

    def __str__(self) -> str:
        return "; ".join(map(str, self.wishes))

    @property
    def form(self) -> str:
        """One of `FORMS`."""
        return ONE if len(self.wishes) == 1 else BOTH if all(wish.is_wanted for wish in self.wishes) else WITHOUT

    @property
    def facets(self) -> str:
        """Names of the facets that are asked for."""
        return " and ".join(wish.facet for wish in self.wishes)


@dataclass(frozen=True)
class QueryRules:
    """Rules of what is asked.

    Args:
        most: Number of queries kept of each pair of facets, for each form; of one trait, all are.
        fewest: Number of right images that a query needs; with less, one more or less moves recall by over a fifth.
        num_negatives: Number of wrong images among which a right one stands, by default that of COCO-Facet.
    """

    most: int = 10
    fewest: int = 5
    num_negatives: int = NUM_NEGATIVES


def attribute_queries(traits: Mapping[str, Sequence[AbstractSet[str]]], rules: QueryRules) -> list[AttributeQuery]:
    """Make all queries of one trait, and some of two and of one without another, the same from the same traits.

    Args:
        traits: Texts of the traits of N images, by facet.
        rules: Rules of what is asked.

    A second wish has to matter. Of two traits, some images have either alone; of one without another, at least
    `fewest` have both.

    >>> colours, kinds = [{"red"}, {"red"}, {"blue"}, {"blue"}], [{"cat"}, {"dog"}, {"cat"}, {"dog"}]
    >>> found = attribute_queries({"colour": colours, "kind": kinds}, QueryRules(most=1, fewest=1, num_negatives=1))
    >>> [(str(query), query.relevant) for query in found if query.form != "one trait"][0]
    ('colour: blue; kind: cat', (2,))
    """
    sizes = {facet: len(each) for facet, each in traits.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"`traits` has {sizes} images; expected as many of each facet. Give an image an empty set.")
    num_images = next(iter(sizes.values()), 0)

    def is_fair(rows: AbstractSet[int]) -> bool:
        return rules.fewest <= len(rows) <= num_images - rules.num_negatives

    having = {
        facet: {text: rows for text, rows in _rows_by_text(each).items() if is_fair(rows)}
        for facet, each in traits.items()
    }
    single = [
        AttributeQuery((Wish(facet, text),), tuple(sorted(rows)))
        for facet, by_text in having.items()
        for text, rows in by_text.items()
    ]
    kept = [_kept(_both(having, pair, is_fair), rules.most) for pair in combinations(having, 2)]
    kept += [_kept(_without(having, pair, is_fair, rules.fewest), rules.most) for pair in permutations(having, 2)]
    return [*single, *(query for each in kept for query in each)]


def _rows_by_text(traits: Sequence[AbstractSet[str]]) -> dict[str, set[int]]:
    rows: dict[str, set[int]] = {}
    for row, texts in enumerate(traits):
        for text in texts:
            rows.setdefault(text, set()).add(row)
    return dict(sorted(rows.items()))


Having = Mapping[str, Mapping[str, AbstractSet[int]]]
IsFair = Callable[[AbstractSet[int]], bool]


def _both(having: Having, facets: tuple[str, str], is_fair: IsFair) -> Iterator[AttributeQuery]:
    first, second = facets
    for text, rows in having[first].items():
        for other, others in having[second].items():
            both = rows & others
            if is_fair(both) and len(both) < min(len(rows), len(others)):
                yield AttributeQuery((Wish(first, text), Wish(second, other)), tuple(sorted(both)))


def _without(having: Having, facets: tuple[str, str], is_fair: IsFair, fewest: int) -> Iterator[AttributeQuery]:
    first, second = facets
    for text, rows in having[first].items():
        for other, others in having[second].items():
            if is_fair(rows - others) and len(rows & others) >= fewest:
                wishes = (Wish(first, text), Wish(second, other, is_wanted=False))
                yield AttributeQuery(wishes, tuple(sorted(rows - others)))


def _kept(queries: Iterator[AttributeQuery], most: int) -> list[AttributeQuery]:
    return sorted(queries, key=lambda query: stable_number(str(query)))[:most]


def score_queries(
    queries: Sequence[AttributeQuery], score: Callable[[Wish], Tensor], *, unwanted_weight: float = 1.0
) -> Tensor:
    """Add up the scores of each query's wishes, and take off those of what is not wanted.

    Args:
        queries: Q queries.
        score: Score of N images for a wish, as if it was wanted: (N,).
        unwanted_weight: Weight of what is not wanted, by default that of `not` in the query language.

    Returns:
        Scores (Q, N).
    """
    known: dict[tuple[str, str], Tensor] = {}
    weight_of = {True: 1.0, False: -unwanted_weight}
    rows = []
    for query in queries:
        for wish in query.wishes:
            if (wish.facet, wish.text) not in known:
                known[wish.facet, wish.text] = score(wish)
        signed = [known[wish.facet, wish.text] * weight_of[wish.is_wanted] for wish in query.wishes]
        rows.append(torch.stack(signed).sum(dim=0))
    return torch.stack(rows)


def incorrect_ahead(scores: Tensor, relevant: Sequence[int]) -> Tensor:
    """Count the wrong images that score at least as high as each right one, (R,), fewest first.

    Args:
        scores: Scores of the images, (N,).
        relevant: Rows of those that are right.
    """
    is_right = torch.zeros(len(scores), dtype=torch.bool)
    is_right[list(relevant)] = True
    wrong = scores[~is_right].sort().values
    return (len(wrong) - torch.searchsorted(wrong, scores[is_right].contiguous())).sort().values


def expected_recall(ahead: Tensor, num_wrong: int, *, k: int = 5, num_negatives: int = NUM_NEGATIVES) -> Tensor:
    """Return the probability (R,) that a right image is among the first k, with wrong ones drawn without replacement.

    Args:
        ahead: Number of wrong images ahead of each right one, (R,).
        num_wrong: Number of all wrong images.
        k: Number of answers looked at.
        num_negatives: Number of wrong images drawn.

    Raises:
        ValueError: less wrong images than are drawn.

    One of two wrong images is ahead, and one is drawn: half of the time it is the other one.

    >>> expected_recall(torch.tensor([0, 1, 2]), 2, k=1, num_negatives=1)
    tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    if num_wrong < num_negatives:
        raise ValueError(
            f"`num_wrong` is {num_wrong}; expected {num_negatives} or more, to draw from. Use more images, or draw "
            "less."
        )
    # At most k - 1 of those drawn are ahead: a sum of the hypergeometric distribution's first terms.
    drawn = torch.arange(min(k, num_negatives + 1), dtype=torch.float64)
    before = ahead.double()[:, None]
    behind = num_wrong - before
    logarithms = (
        _log_choose(before, drawn)
        + _log_choose(behind, num_negatives - drawn)
        - _log_choose(torch.tensor(float(num_wrong)).double(), torch.tensor(float(num_negatives)).double())
    )
    return logarithms.exp().sum(dim=1).clamp(max=1.0)


def _log_choose(count: Tensor, drawn: Tensor) -> Tensor:
    """Return the logarithm of the number of ways to draw; minus infinity if there are not so many."""
    found = torch.lgamma(count + 1) - torch.lgamma(drawn + 1) - torch.lgamma((count - drawn).clamp(min=0) + 1)
    return found.masked_fill(drawn > count, -torch.inf)


@dataclass(frozen=True)
class QueryScores:
    """Numbers of one query.

    Args:
        recall: Recall@k among wrong images that are drawn, mean over the right ones.
        precision: Share of right images among the first k of all.
        average_precision: Mean precision at the places of the right ones, among all.
    """

    recall: float
    precision: float
    average_precision: float


def measure_query(
    scores: Tensor, query: AttributeQuery, *, k: int = 5, num_negatives: int = NUM_NEGATIVES
) -> QueryScores:
    """Measure one query by the scores (N,) of the images. Ties count against the model."""
    ahead = incorrect_ahead(scores, query.relevant)
    number = torch.arange(1, len(ahead) + 1)
    recall = expected_recall(ahead, len(scores) - len(ahead), k=k, num_negatives=num_negatives)
    return QueryScores(
        recall=recall.mean().item(),
        precision=((ahead + number <= k).sum() / k).item(),
        average_precision=(number / (number + ahead)).double().mean().item(),
    )
