# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""From a checkpoint and a folder to what the page can be asked: the index is built, or brought up to date."""

import logging
import re
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoProcessor

from ..corpus.build import MANIFEST, load_corpus
from ..search import DatasetImages, FolderImages, SearchIndex, index_images
from ..search.images import Images
from .showcase import Captions, Showcase

logger = logging.getLogger(__name__)

FILE_NAME = "file name"  # the perspective of captions that are made of it
INDEX_ENDING = ".index"


def open_showcase(checkpoint: str, images: str | Path, *, index: str | Path | None = None) -> Showcase:
    """Load, index what is not indexed yet, and open.

    Args:
        checkpoint: a directory, or a name on the Hub.
        images: a folder of images, or a built corpus, whose captions are taken too. Where there are no captions, the
            names of the files are.
        index: its directory. Default: beside the images, with `.index` behind their name.

    Raises:
        ValueError: no such folder; no images in it; an index of another checkpoint.
    """
    model, processor = AutoModel.from_pretrained(checkpoint).eval(), AutoProcessor.from_pretrained(checkpoint)
    images = Path(images)
    source, captions = _open_images(images)
    directory = images.resolve().with_name(images.resolve().name + INDEX_ENDING) if index is None else Path(index)
    report = index_images(directory, source, model, processor, progress=True)
    logger.info("%s", report)
    opened = SearchIndex(directory, model, processor, images=source)
    if captions is None:
        captions = captions_of_names(opened)
    showcase = Showcase(opened, model, processor, captions=captions, name=Path(checkpoint).name)
    showcase.warm_up()
    return showcase


def captions_of_names(index: SearchIndex) -> Captions:
    """The words of each file's name, of those that have some: `animals/red-fox_2.jpg` gives `red fox`."""
    words = {image_id: " ".join(re.findall(r"[^\W\d_]{2,}", Path(image_id).stem)) for image_id in index.image_ids}
    return {image_id: [(FILE_NAME, text)] for image_id, text in words.items() if text}


def _open_images(images: Path) -> tuple[Images, Captions | None]:
    if not (images / MANIFEST).is_file():
        return FolderImages(images), None
    corpus: Any = load_corpus(images)
    rows = corpus.select_columns(["image_id", "captions"])
    captions = {
        row["image_id"]: [(caption["perspective"], caption["text"]) for caption in row["captions"]] for row in rows
    }
    return DatasetImages(corpus, name=images.resolve().name), captions
