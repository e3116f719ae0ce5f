# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Captions that the page compares images with: where they come from, and their vectors, which stay with the index.

Axes: T texts, D projection width.
"""

import heapq
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..images.left_out import LeftOutLog, usable_captions
from ..search import SearchIndex
from ..search.store import CAPTION_VECTORS
from ..storage import stable_number, write_atomically

logger = logging.getLogger(__name__)

FILE_NAME = "file name"  # the perspective of captions that are made of it
MOST_CAPTIONS = 5_000  # to compare an uploaded image with
MOST_EXAMPLES = 5  # queries to begin with
LONGEST_EXAMPLE = 48  # letters of a caption in one
_VECTORS, _FINGERPRINT, _TEXTS = "vectors", "fingerprint", "texts"
Captions = Sequence[tuple[str, str]]  # perspective and text of each
CaptionsById = Mapping[str, Captions]
EmbedTexts = Callable[[Sequence[str]], Tensor]  # T texts to (T, D)
WriteCaption = Callable[[str, str], str]  # text and perspective


def captions_of_names(index: SearchIndex) -> CaptionsById:
    """Return the words of each file's name, of those that have some: `animals/red-fox_2.jpg` gives `red fox`."""
    words = {image_id: " ".join(re.findall(r"[^\W\d_]{2,}", Path(image_id).stem)) for image_id in index.image_ids}
    return {image_id: [(FILE_NAME, text)] for image_id, text in words.items() if text}


def captions_of_corpus(corpus: Any) -> CaptionsById:
    """Return the captions of a built corpus by image id; those that say nothing are left out, and told of."""
    log, found = LeftOutLog(), {}
    for row in corpus.select_columns(["image_id", "captions"]):
        faults: dict[str, str] = {}
        captions = usable_captions(row["image_id"], row["captions"], faults)
        found[row["image_id"]] = [(caption.perspective, caption.text) for caption in captions]
        log.note(faults)
    return found


def chosen_texts(captions: CaptionsById, write: WriteCaption = lambda text, perspective: text) -> dict[str, str]:
    """Return all different texts or, of too many, some from everywhere, the same ones whatever becomes of others.

    Args:
        captions: Captions of each image.
        write: Function of a text and its perspective, which returns it as the model is to read it. Default: as it is.

    Returns:
        Each text as the model is to read it, and as people wrote it.
    """
    texts = {write(text, perspective): text for pairs in captions.values() for perspective, text in pairs}
    if len(texts) <= MOST_CAPTIONS:
        return texts
    chosen = set(heapq.nsmallest(MOST_CAPTIONS, texts, key=stable_number))
    return {written: text for written, text in texts.items() if written in chosen}


def example_queries(captions: CaptionsById, perspectives: Sequence[str]) -> list[str]:
    """Return queries to begin with, of captions that are in the index.

    The first is a plain text, the next ask one perspective each, as far as it has captions, and the last asks for one
    and against another.
    """
    images = [pairs for pairs in captions.values() if pairs]
    texts = [text for pairs in images for _, text in pairs if len(text) <= LONGEST_EXAMPLE]
    found = [_quoted(texts[len(texts) // 2])] if texts else []
    by_perspective: dict[str, list[str]] = {}
    for pairs in images:
        for perspective, text in pairs:
            if perspective in perspectives and len(text) <= LONGEST_EXAMPLE:
                by_perspective.setdefault(perspective, []).append(_quoted(text))
    for number, (perspective, some) in enumerate(by_perspective.items(), start=1):
        name = perspective.replace("_", " ")
        found.append(f"{name}: {some[len(some) * number // (len(by_perspective) + 1)]}")
    if len(by_perspective) > 1:
        (first, wanted), *_, (last, others) = by_perspective.items()
        unlike = next((text for text in reversed(others) if text != others[0]), others[0])
        found.append(f"{first.replace('_', ' ')}: {wanted[0]}; not {last.replace('_', ' ')}: {unlike}")
        found = [*found[: MOST_EXAMPLES - 1], found[-1]]
    return list(dict.fromkeys(found))[:MOST_EXAMPLES]


def _quoted(text: str) -> str:
    """Write a caption as a term of a query."""
    plain = " ".join(text.split())
    is_marked = any(mark in plain for mark in ':;^"') or plain.casefold().startswith("not ")
    return '"{}"'.format(plain.replace('"', '""')) if is_marked else plain


def embed_kept(directory: Path, fingerprint: str, texts: Sequence[str], embed: EmbedTexts) -> Tensor:
    """Embed texts, those again that lie beside the index, and keep them there for the next start.

    What another checkpoint left there is not read. Where nothing may be written, nothing is kept.

    Args:
        directory: Folder of the index.
        fingerprint: Fingerprint of the checkpoint.
        texts: T texts.
        embed: Function that embeds the texts that are new.

    Returns:
        (T, D), in the order of `texts`.
    """
    known = _read(directory / CAPTION_VECTORS, fingerprint)
    new = [text for text in dict.fromkeys(texts) if text not in known]
    if new:
        known |= dict(zip(new, embed(new), strict=True))
    found = torch.stack([known[text] for text in texts])
    if new or len(known) != len(set(texts)):
        about = {_FINGERPRINT: fingerprint, _TEXTS: json.dumps(list(texts))}
        try:
            with write_atomically(directory / CAPTION_VECTORS) as file:
                file.write(save({_VECTORS: found.contiguous()}, about))
        except OSError as error:
            logger.warning("The vectors of captions are not kept in %s: %s", directory, error)
    return found


def _read(path: Path, fingerprint: str) -> dict[str, Tensor]:
    """Return vectors by text that this checkpoint left in a file, or none."""
    if not path.is_file():
        return {}
    try:
        with safe_open(str(path), framework="pt") as opened:
            about = opened.metadata() or {}
            if about.get(_FINGERPRINT) != fingerprint:
                return {}
            texts, vectors = json.loads(about[_TEXTS]), opened.get_tensor(_VECTORS)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        logger.warning("%s cannot be read (%s) and is made anew.", path, error)
        return {}
    is_whole = isinstance(texts, list) and vectors.dtype == torch.float32 and vectors.ndim == 2
    if not is_whole or len(texts) != len(vectors) or not vectors.isfinite().all():
        logger.warning("%s is damaged and is made anew.", path)
        return {}
    return dict(zip(texts, vectors, strict=True))
