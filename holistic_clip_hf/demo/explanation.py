# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Explanation of an image as an answer: where branches look, what speaks for each term of a query, how captions match.

Axes: H branches, M captions of an image, P patches, D projection width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..evaluation.encoding import encode_texts, evaluation_mode, whole_image, written_caption
from ..modeling_holistic_clip import HolisticCLIPModel
from ..search import FUSED, Term
from ..search.encoding import embed_images
from ..visualization import (
    branch_attention,
    branch_relevance,
    crop_as_seen,
    part_matching,
    patch_agreement,
    patch_grid,
    words_of,
)
from ..visualization.maps import strength

MOST_TERMS = 4  # of a query, that get maps
MOST_WORDS = 8  # of a query, that get a map each
SHARED_ATTENTION = (
    "The branches of this model part behind their last attention, which they share: it cannot tell them apart. What "
    "speaks for a text goes by gradients, and can."
)
NO_WORDS = "The query has no word that could name a thing in an image."


@dataclass(frozen=True)
class LabelledMap:
    """One map (rows, columns) of numbers by patch, and what stands below it.

    Args:
        name: Name of the branch or word.
        note: Remark, such as how strong the map is.
        values: Numbers of the patches.
        is_wanted: False if it shows what counts against the image.
        blank: Reason why nothing stands out in the map; empty if something does.
    """

    name: str
    note: str
    values: Tensor
    is_wanted: bool = True
    blank: str = ""


@dataclass(frozen=True)
class AskedTerm:
    """One term of a query, and by how much each branch that it asks counts; below zero, against.

    Args:
        term: the term.
        weights: Weight of each branch.
        by_name: True if branches that the term does not name are asked by sliders of their own alone, which is asking
            them by name. A text of such a term is written as that of a term with a perspective.
    """

    term: Term
    weights: Mapping[str, float]
    by_name: bool = False

    @property
    def is_wanted(self) -> bool:
        """Tell whether the term counts for an image, and not against it."""
        return self.term.weight > 0

    def perspective_of(self, branch: str) -> str:
        """Return the perspective that a branch is asked from, by which a text is written."""
        return branch if self.by_name and self.term.perspective == FUSED else self.term.perspective


@dataclass(frozen=True)
class TermMaps:
    """Patches that raise the agreement of an image with one term, for each branch that the term asks."""

    asked: AskedTerm
    maps: Sequence[LabelledMap]


@dataclass(frozen=True)
class Matching:
    """Captions of one image against its branches; `similarity` is (H, M)."""

    branches: Sequence[str]
    captions: Sequence[tuple[str, str]]
    similarity: Tensor


@dataclass(frozen=True)
class Inspection:
    """All there is to see of one image.

    Args:
        seen: Part of the image that the model sees.
        attention: Map for each branch, or none if the branches share their attention.
        terms: Maps for each term of the query that gets some.
        num_terms: Number of terms of the query.
        words: Map for each word of the query that gets one.
        num_words: Number of words of the query.
        matching: Captions of the image against its branches, if it has captions.
    """

    seen: Image.Image
    attention: Sequence[LabelledMap]
    terms: Sequence[TermMaps]
    num_terms: int
    words: Sequence[LabelledMap]
    num_words: int
    matching: Matching | None


def weights_by_branch(term: Term, sliders: Mapping[str, float], branches: Sequence[str]) -> dict[str, float]:
    """Return by how much each branch counts that a term asks; branches that do not count are left out.

    A term with a perspective asks that branch alone. Any other is left to the sliders, of which `FUSED` asks all
    branches in equal shares, but for those that the term leaves out.

    >>> weights_by_branch(Term("a dog", weight=-1.0), {"fused": 1.0, "style": 2.0}, ["short", "style"])
    {'short': -0.5, 'style': -2.5}
    """
    if term.perspective != FUSED:
        return {term.perspective: term.weight}
    asked = [branch for branch in branches if branch not in term.without]
    found = {
        branch: term.weight * (sliders.get(FUSED, 0.0) / len(asked) + sliders.get(branch, 0.0)) for branch in asked
    }
    return {branch: weight for branch, weight in found.items() if weight != 0}


class Explainer:
    """Maps of images by one model; one thread at a time may ask.

    Args:
        model, processor: Parts of the checkpoint.
    """

    def __init__(self, model: HolisticCLIPModel, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.branches = list(model.config.perspectives)

    def inspect(
        self, image: Image.Image, asked: Sequence[AskedTerm], captions: Sequence[tuple[str, str]]
    ) -> Inspection:
        """Find where branches look in an image, what speaks for each term, and how captions match the branches.

        Raises:
            ValueError: as the processor, of the image.
        """
        # By what is read: a word of two terms has one map, unless they ask it of two perspectives.
        words = {
            (self._write(word, each.term.perspective), each.is_wanted): word
            for each in asked
            for word in (words_of(each.term.text) if each.term.text is not None else ())
        }
        with evaluation_mode(self.model):
            pixels = whole_image(self.model, self.processor(images=[image], return_tensors="pt"))
            pixels = pixels.to(self.model.device)
            return Inspection(
                seen=crop_as_seen(image, self.processor.image_processor.to_dict()),
                attention=self._attention(pixels),
                terms=self._terms(pixels, asked[:MOST_TERMS]),
                num_terms=len(asked),
                words=self._words(pixels, dict(islice(words.items(), MOST_WORDS))),
                num_words=len(words),
                matching=self._matching(pixels, captions) if captions else None,
            )

    def _attention(self, pixels: Tensor) -> list[LabelledMap]:
        vision = self.model.vision_model.config
        if self.model.vision_model.has_streams and vision.num_branch_layers == 1:
            return []  # the branches share it
        maps = branch_attention(self.model, pixels)[0]
        notes = [f"peak {value:.1f} × even" for value in strength(maps).tolist()]
        return [
            LabelledMap(name, note, values, blank=_even(values))
            for name, note, values in zip(self.branches, notes, self._grids(pixels, maps), strict=True)
        ]

    def _terms(self, pixels: Tensor, asked: Sequence[AskedTerm]) -> list[TermMaps]:
        if not asked:
            return []
        vectors = torch.stack([self._term_vectors(each) for each in asked])  # (terms, H, D)
        images = self.model.get_image_features(pixels).branch_embeds[0]
        similarity = torch.einsum("hd,thd->th", images, vectors.to(images))
        found = []
        for each, scores, by_branch in zip(asked, similarity.tolist(), vectors, strict=True):
            relevance = self._relevance(pixels, each, by_branch)
            grids = self._grids(pixels, relevance.clamp(min=0))
            found.append(TermMaps(each, [self._map(each, name, scores, grids) for name in each.weights]))
        return found

    def _map(self, asked: AskedTerm, name: str, scores: Sequence[float], grids: Tensor) -> LabelledMap:
        branch = self.branches.index(name)
        is_wanted, values = asked.weights[name] > 0, grids[branch]
        blank = _even(values) if values.max() > 0 else "Blank: no patch raises this branch's agreement."
        return LabelledMap(name, f"agrees {scores[branch]:+.2f}", values, is_wanted, blank)

    def _term_vectors(self, asked: AskedTerm) -> Tensor:
        """Return what each branch is held against, a text in the form of its perspective or an example: (H, D)."""
        term = asked.term
        if term.image is not None:
            return torch.from_numpy(embed_images(self.model, self.processor, [term.image], fused=False)[0])
        assert term.text is not None
        return self._embed([self._write(term.text, asked.perspective_of(branch)) for branch in self.branches])

    def _relevance(self, pixels: Tensor, asked: AskedTerm, vectors: Tensor) -> Tensor:
        """Return (H, P) of the branches, each against its own vector of (H, D)."""
        if asked.term.image is None and torch.equal(vectors, vectors[:1].expand_as(vectors)):
            return branch_relevance(self.model, pixels, vectors[:1].to(pixels.device))[0, :, 0]
        return torch.diagonal(branch_relevance(self.model, pixels, vectors.to(pixels.device))[0]).T

    def _words(self, pixels: Tensor, words: Mapping[tuple[str, bool], str]) -> list[LabelledMap]:
        """Return a map of each word; `words` has them by the text that is read, and whether they are wanted."""
        if not words:
            return []
        patches = self.model.get_patch_features(pixels).patch_embeds
        maps = patch_agreement(patches, self._embed([text for text, _ in words]).to(pixels.device))[0]
        notes = [f"best {value:+.2f}" for value in maps.amax(dim=-1).tolist()]
        return [
            LabelledMap(word, note, values, is_wanted, _even(values))
            for ((_, is_wanted), word), note, values in zip(
                words.items(), notes, self._grids(pixels, maps), strict=True
            )
        ]

    def _matching(self, pixels: Tensor, captions: Sequence[tuple[str, str]]) -> Matching:
        vectors = self.model.get_image_features(pixels).branch_embeds[0].float().cpu()
        texts = [self._write(text, perspective) for perspective, text in captions]
        return Matching(self.branches, captions, part_matching(vectors, self._embed(texts)))

    def _write(self, text: str, perspective: str) -> str:
        return written_caption(self.processor, text, perspective)

    def _embed(self, texts: Sequence[str]) -> Tensor:
        return encode_texts(self.model, self.processor, texts, batch_size=32)

    def _grids(self, pixels: Tensor, maps: Tensor) -> Tensor:
        """Return maps (..., P) as rows and columns."""
        return maps.float().cpu().unflatten(-1, patch_grid(self.model, pixels))


def _even(values: Tensor) -> str:
    """Say that nothing stands out in a map, if so."""
    spread = (values.max() - values.min()).item()
    return "" if spread > 1e-6 * values.abs().max().item() else "Blank: all patches count alike."
