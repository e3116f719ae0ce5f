# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Index that a running program answers from, and takes up anew once indexing has replaced it."""

import logging
import os
import threading
from collections.abc import Callable

from .index import SearchIndex
from .store import MANIFEST, Manifest, read_index_manifest

logger = logging.getLogger(__name__)


Reopen = Callable[[SearchIndex], SearchIndex]


class LiveIndex:
    """Index of a folder as it is at each question; any number of threads may ask.

    Args:
        index: Index as it was opened.
        reopen: Function that opens what the folder holds now. Default: `SearchIndex.reopened`.

    Example:

    >>> live = LiveIndex(SearchIndex("photos.index", model, processor))
    >>> live.current().search("a dog")  # all of one answer is asked of one index
    """

    def __init__(self, index: SearchIndex, reopen: Reopen = SearchIndex.reopened) -> None:
        self.index = index  # as it was last taken up
        self.notice = ""  # sentence on an index that is not taken up; without paths, since strangers may read it
        self._reopen = reopen
        self._seen: tuple[int, ...] | None = None
        self._lock = threading.Lock()

    def current(self) -> SearchIndex:
        """Return the index to answer from. Whoever finds another first opens it, and the others do not wait for that.

        An index of another model, kind of vectors or images is not taken up, which `notice` then says.
        """
        state = _state_of_manifest(self.index)
        if state not in (None, self._seen) and self._lock.acquire(blocking=False):
            try:
                self._look(state)
            finally:
                self._lock.release()
        return self.index

    def _look(self, state: tuple[int, ...] | None) -> None:
        try:
            manifest = read_index_manifest(self.index.directory)
            told = _difference(self.index.manifest, manifest)
            if not told and manifest != self.index.manifest:
                self.index = self._reopen(self.index)
        except (ImportError, OSError, ValueError) as error:
            logger.warning("%s is answered as it was: %s", self.index.directory, error)
            told = "one that cannot be opened; look into the log"
        if told:
            self.notice = f"The index was replaced by {told}. Answers are those of the index before."
            logger.warning("%s: %s", self.index.directory, self.notice)
        else:
            self.notice = ""
        self._seen = state


def _state_of_manifest(index: SearchIndex) -> tuple[int, ...] | None:
    """Return what changes whenever an index is replaced, or None if its folder holds none."""
    try:
        found = os.stat(index.directory / MANIFEST)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _difference(before: Manifest, now: Manifest) -> str:
    """Say in what an index is so different that another takes its place only after a restart, or nothing."""
    if before.layout.vectors != now.layout.vectors:
        return f"one with vectors={now.layout.vectors!r}; start again to see it"
    if before.layout.checkpoint != now.layout.checkpoint:
        return "one of another model; start again with that model to see it"
    return "" if before.origin == now.origin else "one of other images; start again with these to see it"
