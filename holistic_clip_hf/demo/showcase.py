# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Showcase: images for a text or an example, reasons, maps and captions, as the page asks for them. It knows no page.

Axes: H branches, M captions of an image, T texts, P patches, D projection width.
"""

import copy
import glob
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..corpus.build import MANIFEST, load_corpus
from ..evaluation.encoding import encode_texts, evaluation_mode, load_checkpoint
from ..images.sources import Images
from ..modeling_holistic_clip import HolisticCLIPModel
from ..search import FUSED, DatasetImages, Filter, FolderImages, Hit, SearchIndex, Term, index_images
from ..search.encoding import embed_images
from ..search.indexing import require_index_place
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

logger = logging.getLogger(__name__)

FILE_NAME = "file name"  # the perspective of captions that are made of it
INDEX_ENDING = ".index"
SHOWN = 24  # images for a query
MOST_CAPTIONS = 5_000  # to compare an uploaded image with
MOST_WORDS = 8  # of a text, that get a map each
MOST_LETTERS = 300  # of a text that maps are drawn for
NEAREST = 5  # captions for each branch
CaptionsById = Mapping[str, Sequence[tuple[str, str]]]  # image id → (perspective, text)


@dataclass(frozen=True)
class LabelledMap:
    """One map (rows, columns) of numbers by patch, and what stands below it."""

    name: str
    note: str
    values: Tensor


@dataclass(frozen=True)
class Matching:
    """Captions of one image against its branches; `similarity` is (H, M)."""

    branches: Sequence[str]
    captions: Sequence[tuple[str, str]]
    similarity: Tensor


@dataclass(frozen=True)
class Inspection:
    """All there is to see of one image; `seen` is the part of it that the model sees."""

    seen: Image.Image
    attention: Sequence[LabelledMap]
    relevance: Sequence[LabelledMap]
    words: Sequence[LabelledMap]
    matching: Matching | None


class Showcase:
    """An index and its checkpoint, as the page asks them; any number of threads may.

    Args:
        index: Index of the images to show.
        model, processor: the checkpoint that made it.
        captions: Captions of the images, as far as they have any. An uploaded image is compared with all of them.
        name: Name of the checkpoint, for people.
    """

    def __init__(
        self,
        index: SearchIndex,
        model: HolisticCLIPModel,
        processor: Any,
        *,
        captions: CaptionsById | None = None,
        name: str = "",
    ) -> None:
        self.index, self.model, self.name = index, model, name
        self.branches = list(model.config.perspectives)
        self.captions = captions or {}
        # A tokenizer of the fast kind refuses two threads at once, and the index has one of its own.
        self._processor = copy.deepcopy(processor)
        self._lock = threading.Lock()
        self.texts = _chosen(self.captions)
        self._text_embeds = None
        if self.texts:
            self._text_embeds = encode_texts(model, self._processor, self.texts, batch_size=64, progress=True)

    def warm_up(self) -> None:
        """Do once, before anybody waits for it, what takes longer the first time."""
        self.search("a picture")
        for hit in self.browse(1):
            self.inspect(self.index.image(hit.image_id), "a picture", image_id=hit.image_id)

    def search(
        self,
        query: str | Image.Image,
        weights: Mapping[str, float] | None = None,
        *,
        k: int = SHOWN,
        only: str | None = None,
    ) -> list[Hit]:
        """Return the best images for a text or an example.

        Args:
            query: a text, in the language of `parse_query`, or an image.
            weights: Weights by perspective, `FUSED` among them. Below zero, one counts against. They hold for what the
                text says without a perspective of its own. Default: `FUSED` alone.
            only: an image id, to see what this one scores.

        Raises:
            ValueError: an empty or malformed query; weights that are all zero.
        """
        weights = {name: weight for name, weight in (weights or {FUSED: 1.0}).items() if weight != 0}
        if not weights:
            raise ValueError("All weights are zero, so that no image is better than another. Move one of the sliders.")
        wishes = self.index.parse(query) if isinstance(query, str) else [Term(image=query)]
        terms = []
        for wish in wishes:
            if wish.perspective != FUSED:
                terms.append(wish)
                continue
            terms += [Term(wish.text, wish.image, name, wish.weight * weight) for name, weight in weights.items()]
        where = None if only is None else Filter(path=glob.escape(only))
        return self.index.search(terms, k=k, where=where)

    def browse(self, k: int = SHOWN) -> list[Hit]:
        """Return images from everywhere, before anything is asked."""
        ids = self.index.image_ids
        places = np.linspace(0, len(ids) - 1, min(k, len(ids))).round().astype(int)
        return [Hit(ids[place], 0.0, [], {}) for place in places]

    def nearest_captions(self, image: Image.Image) -> dict[str, list[tuple[str, float]]]:
        """Find for each branch the captions that agree with it most, best first; none without captions."""
        if self._text_embeds is None:
            return {}
        with self._lock:
            vectors = torch.from_numpy(embed_images(self.model, self._processor, [image], fused=False)[0])
        found = {}
        for branch, scores in zip(self.branches, vectors @ self._text_embeds.T, strict=True):
            best = scores.topk(min(NEAREST, len(self.texts)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            found[branch] = [(self.texts[text], score) for text, score in pairs]
        return found

    def inspect(self, image: Image.Image, text: str = "", *, image_id: str | None = None) -> Inspection:
        """Find where branches look in an image, what speaks for a text, and how its own captions match the branches.

        Raises:
            ValueError: as the processor, of the image.
        """
        text = " ".join(text.split())[:MOST_LETTERS]
        captions = list(self.captions.get(image_id, ())) if image_id is not None else []
        with self._lock, evaluation_mode(self.model):
            pixels = self._processor(images=[image], return_tensors="pt")["pixel_values"].to(self.model.device)
            return Inspection(
                seen=crop_as_seen(image, self._processor.image_processor.to_dict()),
                attention=self._attention(pixels),
                relevance=self._relevance(pixels, text),
                words=self._words(pixels, text),
                matching=self._matching(pixels, captions) if captions else None,
            )

    def _attention(self, pixels: Tensor) -> list[LabelledMap]:
        vision = self.model.vision_model.config
        if self.model.vision_model.has_streams and vision.num_branch_layers == 1:
            return []  # the branches share it
        maps = branch_attention(self.model, pixels)[0]
        notes = [f"peak {value:.1f} × even" for value in strength(maps).tolist()]
        return self._labelled(pixels, self.branches, notes, maps)

    def _relevance(self, pixels: Tensor, text: str) -> list[LabelledMap]:
        if not text:
            return []
        embeds = self._embed([text]).to(pixels.device)
        maps = branch_relevance(self.model, pixels, embeds)[0, :, 0]
        vectors = self.model.get_image_features(pixels).branch_embeds[0]
        notes = [f"agrees {value:+.2f}" for value in (vectors @ embeds[0]).tolist()]
        return self._labelled(pixels, self.branches, notes, maps.clamp(min=0))

    def _words(self, pixels: Tensor, text: str) -> list[LabelledMap]:
        words = words_of(text)[:MOST_WORDS]
        if not words:
            return []
        patches = self.model.get_patch_features(pixels).patch_embeds
        maps = patch_agreement(patches, self._embed(words).to(pixels.device))[0]
        notes = [f"best {value:+.2f}" for value in maps.amax(dim=-1).tolist()]
        return self._labelled(pixels, words, notes, maps)

    def _matching(self, pixels: Tensor, captions: Sequence[tuple[str, str]]) -> Matching:
        vectors = self.model.get_image_features(pixels).branch_embeds[0].float().cpu()
        return Matching(self.branches, captions, part_matching(vectors, self._embed([text for _, text in captions])))

    def _embed(self, texts: Sequence[str]) -> Tensor:
        return encode_texts(self.model, self._processor, texts, batch_size=32)

    def _labelled(self, pixels: Tensor, names: Sequence[str], notes: Sequence[str], maps: Tensor) -> list[LabelledMap]:
        grids = maps.float().cpu().unflatten(-1, patch_grid(self.model, pixels))
        return [LabelledMap(*each) for each in zip(names, notes, grids, strict=True)]


def _chosen(captions: CaptionsById) -> list[str]:
    """Return all different texts or, of too many, some from everywhere."""
    texts = list(dict.fromkeys(text for pairs in captions.values() for _, text in pairs))
    if len(texts) <= MOST_CAPTIONS:
        return texts
    return [texts[place] for place in np.linspace(0, len(texts) - 1, MOST_CAPTIONS).round().astype(int)]


def open_showcase(
    checkpoint: str, images: str | Path, *, index: str | Path | None = None, replace: bool = False
) -> Showcase:
    """Load, index what is not indexed yet, and open.

    Args:
        checkpoint: a directory, or a name on the Hub.
        images: a folder of images, or a built corpus, whose captions are taken too. Where there are no captions, the
            names of the files are.
        index: its directory. Default: beside the images, with `.index` behind their name.
        replace: Permission to replace an index of other images.

    Raises:
        ValueError: no such folder; no images in it; an index of another checkpoint or of other images.
    """
    images = Path(images)
    source, captions = _open_images(images)
    directory = images.resolve().with_name(images.resolve().name + INDEX_ENDING) if index is None else Path(index)
    require_index_place(directory, source)  # before a model is loaded
    model, processor = load_checkpoint(checkpoint)
    report = index_images(directory, source, model, processor, replace=replace, progress=True)
    logger.info("%s", report)
    opened = SearchIndex(directory, model, processor, images=source)
    if captions is None:
        captions = captions_of_names(opened)
    showcase = Showcase(opened, model, processor, captions=captions, name=Path(checkpoint).name)
    showcase.warm_up()
    return showcase


def captions_of_names(index: SearchIndex) -> CaptionsById:
    """Return the words of each file's name, of those that have some: `animals/red-fox_2.jpg` gives `red fox`."""
    words = {image_id: " ".join(re.findall(r"[^\W\d_]{2,}", Path(image_id).stem)) for image_id in index.image_ids}
    return {image_id: [(FILE_NAME, text)] for image_id, text in words.items() if text}


def _open_images(images: Path) -> tuple[Images, CaptionsById | None]:
    if not (images / MANIFEST).is_file():
        return FolderImages(images), None
    corpus: Any = load_corpus(images)
    rows = corpus.select_columns(["image_id", "captions"])
    captions = {
        row["image_id"]: [(caption["perspective"], caption["text"]) for caption in row["captions"]] for row in rows
    }
    return DatasetImages(corpus, name=str(images.resolve())), captions
