# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Caption rows: what one captioner answered about one image from one perspective, failures included."""

from typing import NamedTuple


class Key(NamedTuple):
    """What a caption row is about; there is one row of each that counts."""

    image_id: str
    perspective: str
    captioner: str
    prompt_hash: str


class CaptionRow(NamedTuple):
    """One answer, or the failure to get one.

    Args:
        image_id: of the image.
        perspective: name of what was asked.
        caption: the answer, cleaned; what a rejected answer said; empty where there was none.
        captioner: the model, by its name on the Hub or on the server.
        revision: of the captioner: a commit hash, or empty where the server does not tell.
        prompt_hash: of prompt, budget and sampling (`Perspective.prompt_hash`).
        status: `ok`; `cut`: good, after an unfinished end was removed; `failed`: no answer, and `error` says why;
            otherwise why the answer is no caption, one of `REJECTED`.
        error: the reason, in words; empty where all is well.
    """

    image_id: str
    perspective: str
    caption: str
    captioner: str
    revision: str
    prompt_hash: str
    status: str
    error: str = ""

    @property
    def key(self) -> Key:
        return Key(self.image_id, self.perspective, self.captioner, self.prompt_hash)

    @property
    def usable(self) -> bool:
        """Whether the caption may go into a corpus."""
        return self.status in USABLE


FAILED = "failed"
USABLE = ("ok", "cut")
REJECTED = ("empty", "refusal", "echo", "repetition", "language", "unfinished", "too_short", "too_long")
STATUSES = (*USABLE, *REJECTED, FAILED)
