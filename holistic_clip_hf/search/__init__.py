# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Search: an index over a folder or a data set of images, asked by text, by example and by perspective."""

from ..evaluation.records import FUSED
from ..images.folders import FolderImages
from ..images.tables import DatasetImages
from .folding import Fold, Folder
from .index import SearchIndex
from .indexing import IndexReport, index_images
from .judging import Answer
from .live import LiveIndex
from .neighbours import estimate_bytes
from .query import Filter, Query, Term, parse_query
from .scoring import Hit, TermScore
from .store import verify_index

__all__ = [
    "FUSED",
    "Answer",
    "DatasetImages",
    "Filter",
    "Fold",
    "Folder",
    "FolderImages",
    "Hit",
    "IndexReport",
    "LiveIndex",
    "TermScore",
    "Query",
    "SearchIndex",
    "Term",
    "estimate_bytes",
    "index_images",
    "parse_query",
    "verify_index",
]
