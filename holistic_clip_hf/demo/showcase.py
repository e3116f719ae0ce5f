# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Showcase: images for a text or an example, reasons, maps and captions, as the page asks them. It knows no page.

Axes: H branches, T texts, D projection width.
"""

import copy
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace as replaced
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..corpus.build import MANIFEST, load_corpus
from ..evaluation.calibration import calibration_or_warning
from ..evaluation.encoding import encode_texts, fuse, load_checkpoint, written_caption
from ..images.sources import Images
from ..modeling_holistic_clip import HolisticCLIPModel
from ..publishing.model_card import known_facts
from ..search import (
    FUSED,
    Answer,
    DatasetImages,
    FolderImages,
    Hit,
    LiveIndex,
    Query,
    SearchIndex,
    Term,
    index_images,
)
from ..search.encoding import embed_images
from ..search.indexing import require_index_place
from ..search.store import MANIFEST as INDEX_MANIFEST
from ..search.store import is_writable
from .captions import (
    Captions,
    CaptionsById,
    captions_of_corpus,
    captions_of_names,
    chosen_texts,
    embed_kept,
    example_queries,
)
from .editing import CaptionFile, clean_edited, own_captions
from .explanation import AskedTerm, Explainer, Inspection, weights_by_branch

logger = logging.getLogger(__name__)

INDEX_ENDING = ".index"
SHOWN = 24  # images for a query, and for each wish for more
NEAREST = 5  # captions for each branch
Sliders = Mapping[str, float]  # weight by perspective, `FUSED` among them
Reopen = Callable[[SearchIndex], tuple[SearchIndex, CaptionsById]]  # an index and captions, as they are now


class Embedded(NamedTuple):
    """Vectors of texts and images, each in its place.

    Args:
        vectors: (T, D), float32 on the CPU; if texts are routed and no branch was named, (T, H * D).
        num_tokens: Number of tokens of the texts, those that were cut not counted.
        num_truncated: Number of different texts that were cut, as too long for the text tower.
    """

    vectors: Tensor
    num_tokens: int
    num_truncated: int


class Showcase:
    """An index and its checkpoint, as the page asks them; any number of threads may.

    Args:
        index: Index of the images to show.
        model, processor: the checkpoint that made it.
        captions: Captions of the images, as far as they have any. An uploaded image is compared with all of them.
        name: Name of the checkpoint, for people.
        edited: File in which corrected captions are saved; its captions count before `captions`. Default: captions
            cannot be corrected.
        reopen: Function that opens the index again once it was replaced, with the captions of its images. Default:
            the images and captions stay as they are.
    """

    def __init__(
        self,
        index: SearchIndex,
        model: HolisticCLIPModel,
        processor: Any,
        *,
        captions: CaptionsById | None = None,
        name: str = "",
        edited: CaptionFile | None = None,
        reopen: Reopen = lambda index: (index.reopened(), {}),
    ) -> None:
        self._live, self._reopen = LiveIndex(index, self._reopened), reopen
        self.model, self.name, self.edited = model, name, edited
        self.branches = list(model.config.perspectives)
        corrected = edited.read() if edited else {}
        self.captions: dict[str, Captions] = {
            **(captions or {}),
            **{image_id: pairs for image_id, pairs in corrected.items() if image_id in index},
        }
        # A tokenizer of the fast kind refuses two threads at once, and the index has one of its own.
        self._processor = copy.deepcopy(processor)
        self._explainer = Explainer(model, self._processor)
        self._lock, self._saving = threading.Lock(), threading.Lock()
        self.examples = example_queries(self.captions, index.perspectives)
        self.texts: list[str] = []
        self._text_embeds: Tensor | None = None
        self._embed_captions()

    @property
    def index(self) -> SearchIndex:
        """Index as it was last taken up."""
        return self._live.index

    @property
    def notice(self) -> str:
        """Sentence on an index that has replaced this one and cannot be shown, or nothing."""
        return self._live.notice

    def current(self) -> SearchIndex:
        """Return the index that all of a question is to be answered from: the one that its folder holds now."""
        return self._live.current()

    def _reopened(self, index: SearchIndex) -> SearchIndex:
        found, captions = self._reopen(index)
        with self._saving:
            corrected = self.edited.read() if self.edited else {}
            corrected = {image_id: pairs for image_id, pairs in corrected.items() if image_id in found}
            # Those of images that are gone stay, for questions that are answered from the index before.
            self.captions = {**self.captions, **captions, **corrected}
            with self._lock:
                self._embed_captions()
        return found

    @property
    def caption_perspectives(self) -> list[str]:
        """Perspectives that a caption may have: the branches' own, and those of the captions so far."""
        used = (perspective for pairs in self.captions.values() for perspective, _ in own_captions(pairs))
        return list(dict.fromkeys([*self.branches, *used]))

    def warm_up(self) -> None:
        """Do once, before anybody waits for it, what takes longer the first time."""
        self.search("a picture")
        for hit in self.browse(1):
            self.inspect(self.index.image(hit.image_id), "a picture", image_id=hit.image_id)

    def wishes(self, query: Query | Image.Image) -> list[Term]:
        """Return the terms of a query as they were written, without the sliders.

        Raises:
            ValueError: an empty or malformed query.
        """
        return [Term(image=query)] if isinstance(query, Image.Image) else self.index.parse(query)

    def search(
        self,
        query: Query | Image.Image,
        sliders: Sliders | None = None,
        *,
        k: int = SHOWN,
        only: str | None = None,
        index: SearchIndex | None = None,
    ) -> list[Hit]:
        """Return the best images for a text, an example, or both.

        Args:
            query: a text, in the language of `parse_query`, an image, or terms.
            sliders: Weights by perspective, `FUSED` among them. Below zero, one counts against. They hold for terms
                that name no perspective. Default: `FUSED` alone.
            k: Number of images.
            only: an image id, to see what this one scores.
            index: Index to answer from, if it is one answer of several. Default: `current()`.

        Raises:
            ValueError: an empty or malformed query; weights that are all zero where a term is left to them.
        """
        index = self.current() if index is None else index
        if only is None:
            return list(self.answer(query, sliders, k=k, index=index).hits)
        return [index.explain(self._terms(query, sliders), only)] if only in index else []

    def answer(
        self,
        query: Query | Image.Image,
        sliders: Sliders | None = None,
        *,
        k: int = SHOWN,
        index: SearchIndex | None = None,
    ) -> Answer:
        """Return what `search` does, and whether any of it seems to fit.

        Args:
            query: Query, as for `search`.
            sliders: Weights of the sliders, as for `search`.
            k: Number of images.
            index: Index to answer from, as for `search`.

        Raises:
            ValueError: as `search`.
        """
        return (self.current() if index is None else index).answer(self._terms(query, sliders), k=k)

    def _terms(self, query: Query | Image.Image, sliders: Sliders | None) -> list[Term]:
        """Return the terms of a query, those without a perspective once for each slider."""
        weights = {name: weight for name, weight in (sliders or {FUSED: 1.0}).items() if weight != 0}
        terms = []
        for wish in self.wishes(query):
            if wish.perspective != FUSED:
                terms.append(wish)
            elif not weights:
                raise ValueError("All sliders are at zero, so that no image is better than another. Move one of them.")
            else:
                terms += [
                    replaced(
                        wish,
                        perspective=name,
                        weight=wish.weight * weights[name],
                        without=wish.without if name == FUSED else (),
                    )
                    for name in weights
                    if name not in wish.without
                ]
        return terms

    def browse(self, k: int = SHOWN, index: SearchIndex | None = None) -> list[Hit]:
        """Return images from everywhere, before anything is asked; of more, the first are the same."""
        ids = (self.current() if index is None else index).image_ids
        step = max(1, -(-len(ids) // SHOWN))
        spread = [image_id for start in range(step) for image_id in ids[start::step]]
        return [Hit(image_id, 0.0, [], {}) for image_id in spread[:k]]

    def nearest_captions(self, image: Image.Image) -> dict[str, list[tuple[str, float]]]:
        """Find for each branch the captions that agree with it most, best first; none without captions."""
        with self._lock:
            texts, embeds = self.texts, self._text_embeds
            if embeds is None:
                return {}
            vectors = torch.from_numpy(embed_images(self.model, self._processor, [image], fused=False)[0])
        found = {}
        for branch, scores in zip(self.branches, vectors @ embeds.T, strict=True):
            best = scores.topk(min(NEAREST, len(texts)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            found[branch] = [(texts[text], score) for text, score in pairs]
        return found

    def embed(self, given: Iterable[str | Image.Image], branch: str = FUSED) -> Embedded:
        """Embed texts and images, so that a dot product of two is the score that the model gives them.

        A text for a branch is written in the form of its perspective.

        Args:
            given: Texts and images, of which one image is held at a time if they come one by one.
            branch: Branch whose vectors images get. Texts have one for all branches. Default: the fused vector.

        Raises:
            ValueError: as the processor; a fused vector where the model's fusion is not a dot product.
        """
        if branch == FUSED and not self.model.branch_fusion.is_linear:
            raise ValueError(
                f"The model's fusion is {self.model.config.fusion!r}, which no two vectors stand for; expected one "
                f"of the branches {', '.join(self.branches)}. Name one."
            )
        width = self.model.config.projection_dim
        texts, images, is_text = [], [torch.zeros(0, len(self.branches), width)], []
        with self._lock:
            for each in given:
                is_text.append(isinstance(each, str))
                if isinstance(each, str):
                    texts.append(written_caption(self._processor, each, branch))
                else:
                    images.append(torch.from_numpy(embed_images(self.model, self._processor, [each], fused=False)))
            before = self._processor.num_truncated
            of_texts = self._encode(texts) if texts else torch.zeros(0, width)
            num_truncated = self._processor.num_truncated - before
            tokens = self._processor.tokenizer(texts, truncation=True)["input_ids"] if texts else []
        branches = torch.cat(images)
        if branch == FUSED:
            of_images, of_texts, _ = fuse(self.model, branches, of_texts)
        else:
            of_images = branches[:, self.branches.index(branch)]
        rows = {True: iter(of_texts), False: iter(of_images)}
        vectors = torch.stack([next(rows[each]) for each in is_text])
        return Embedded(vectors, sum(map(len, tokens)), num_truncated)

    def inspect(
        self,
        image: Image.Image,
        query: Query | Image.Image = "",
        sliders: Sliders | None = None,
        *,
        image_id: str | None = None,
    ) -> Inspection:
        """Find where branches look in an image, what speaks for each term of a query, and how its captions match.

        Args:
            image: Image to look into.
            query: Query that it was found by, as `search` takes it; empty if nothing was asked.
            sliders: Weights of the sliders, as for `search`.
            image_id: Id of the image, if it is one of the index.

        Raises:
            ValueError: as `parse_query`; as the processor, of the image.
        """
        wishes = [] if isinstance(query, str) and not query.strip() else self.wishes(query)
        weights = sliders or {FUSED: 1.0}
        by_name = not weights.get(FUSED)
        asked = [AskedTerm(wish, weights_by_branch(wish, weights, self.branches), by_name) for wish in wishes]
        captions = self.captions.get(image_id, ()) if image_id is not None else ()
        with self._lock:
            return self._explainer.inspect(image, asked, list(captions))

    def correct(self, image_id: str, seen: str, given: Any) -> None:
        """Save the captions of an image as somebody corrected them; from now on they are shown and compared.

        Args:
            image_id: Id of the image.
            seen: `editing.digest_of` the captions that were shown.
            given: Pairs of perspective and text, as a visitor sent them.

        Raises:
            RefusedCaptionsError: captions that are not valid, or others were saved in the meantime.
            KeyError: no such image.
            OSError: they cannot be written.
        """
        if self.edited is None or image_id not in self.index:
            raise KeyError(f"The captions of {image_id!r} cannot be corrected here.")
        captions = clean_edited(given, self.caption_perspectives)
        with self._saving:
            self.edited.save(image_id, seen, captions, self.captions)
            self.captions = {**self.captions, image_id: captions}
            with self._lock:
                self._embed_captions()

    def _embed_captions(self) -> None:
        """Embed the captions as they are now; only new texts are encoded."""
        chosen = chosen_texts(self.captions, partial(written_caption, self._processor))
        self.texts = list(chosen.values())
        self._text_embeds = None
        if self.texts:
            fingerprint = self.index.layout.checkpoint
            self._text_embeds = embed_kept(self.index.directory, fingerprint, list(chosen), self._encode)

    def _encode(self, texts: Sequence[str]) -> Tensor:
        return encode_texts(self.model, self._processor, texts, batch_size=64, progress=len(texts) > SHOWN)


def open_showcase(
    checkpoint: str,
    images: str | Path,
    *,
    index: str | Path | None = None,
    replace: bool = False,
    edit_captions: str | Path | None = None,
    follow_links: bool = False,
) -> Showcase:
    """Load, index what is not indexed yet, and open. An index that may not be written is shown as it is.

    Args:
        checkpoint: a directory, or a name on the Hub.
        images: a folder of images, or a built corpus, whose captions are taken too. Where there are no captions, the
            names of the files are.
        index: its directory. Default: beside the images, with `.index` behind their name.
        replace: Permission to replace an index of other images.
        edit_captions: JSON-lines file in which corrected captions are saved; see `editing`. Default: they cannot be
            corrected.
        follow_links: Follow links in a folder of images, wherever they lead.

    Raises:
        ValueError: no such folder; no images in it; an index of another checkpoint or of other images; a file for
            captions that cannot be one.
    """
    images = Path(images)
    source, captions = _open_images(images, follow_links)
    layout = None
    directory = images.resolve().with_name(images.resolve().name + INDEX_ENDING) if index is None else Path(index)
    is_fixed = (directory / INDEX_MANIFEST).is_file() and not is_writable(directory)
    if not is_fixed:
        require_index_place(directory, source)  # before a model is loaded
    edited = None if edit_captions is None else CaptionFile(edit_captions)
    model, processor = load_checkpoint(checkpoint)
    if is_fixed:
        logger.warning("%s may not be written. It is shown as it is, without new and changed images.", directory)
    else:
        report = index_images(directory, source, model, processor, replace=replace, progress=True)
        logger.info("%s", report)
        layout = report.layout
    calibration = calibration_or_warning(checkpoint)
    opened = SearchIndex(directory, model, processor, images=source, calibration=calibration, known=layout)

    def reopen(index: SearchIndex) -> tuple[SearchIndex, CaptionsById]:
        source, captions = _open_images(images, follow_links)
        found = index.reopened(source)
        return found, captions_of_names(found) if captions is None else captions

    about: dict[str, Any] = {"name": known_facts(Path(checkpoint)).model_name, "edited": edited, "reopen": reopen}
    captions = captions_of_names(opened) if captions is None else captions
    showcase = Showcase(opened, model, processor, captions=captions, **about)
    showcase.warm_up()
    return showcase


def _open_images(images: Path, follow_links: bool) -> tuple[Images, CaptionsById | None]:
    if not (images / MANIFEST).is_file():
        return FolderImages(images, follow_links=follow_links), None
    corpus: Any = load_corpus(images)
    return DatasetImages(corpus, name=str(images.resolve())), captions_of_corpus(corpus)
