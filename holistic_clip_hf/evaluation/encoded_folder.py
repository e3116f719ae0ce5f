# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Folder of vectors that several processes encode for one evaluation, a batch each, known by what was encoded.

A batch is known by a hash of the checkpoint, of the rules of reading, and of the files or texts themselves. So nothing
stale is taken for what is wanted, and whoever finds a batch there has the vectors that it would have computed.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..images.decoding import READING
from ..images.files import image_content
from ..locks import LOCK, hold_lock
from ..sharding import ALL, SHARD_LOCK, Shard
from ..storage import PARTIAL, parse_json, require_own_folder, write_atomically

# A kill costs what was encoded since the last file.
SECONDS_PER_FILE = 60.0
_FILE = re.compile(r"[0-9]{20}\.[0-9]+-of-[0-9]+\.safetensors")
_REASONS = "reasons"


class EncodedBatch(NamedTuple):
    """Vectors of a batch, and the reasons of the places in it that have none.

    Args:
        embeds: (n, H, D) of the images that can be read, or (n, D) of texts.
        reasons: Reasons by the place of an image in the batch.
    """

    embeds: Tensor
    reasons: dict[int, str]


class EncodedFolder:
    """Vectors that processes share by a folder; each adds files of its own, which appear whole and never change.

    Args:
        folder: Folder of the vectors; the first writer makes it.
        checkpoint: Fingerprint of model and processor.
        shard: Share of the batches that this process encodes for others.

    Raises:
        ValueError: the folder holds files of others.
    """

    def __init__(self, folder: Path, checkpoint: str, shard: Shard = ALL) -> None:
        require_own_folder(folder, _is_ours, holds="vectors of an evaluation")
        self.folder, self.shard = folder, shard
        self._about = f"{checkpoint} {READING}"
        self._found = {key: path for path in sorted(folder.glob("*.safetensors")) for key in _keys_of(path)}
        self._waiting: dict[str, EncodedBatch] = {}
        self._last = time.monotonic()

    def images(self, images: Sequence[Any], encode: Callable[[], EncodedBatch]) -> EncodedBatch:
        """Return the vectors of a batch of undecoded images; `encode` computes them if they are not there."""
        digests = (hashlib.sha256(image_content(each)).digest() for each in images)
        return self._once(self._key("images", digests), encode)

    def texts(self, texts: Sequence[str], encode: Callable[[], EncodedBatch]) -> EncodedBatch:
        """Return the vectors of a batch of texts; `encode` computes them if they are not there."""
        return self._once(self._key("texts", (json.dumps(text).encode() for text in texts)), encode)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep what is encoded inside for others.

        Raises:
            InUseError: another process encodes this share.
            OSError: the disk is full.
        """
        with hold_lock(self.folder / f".{self.shard}{LOCK}"):
            for partial in self.folder.glob(f".*.{self.shard}.safetensors.*.partial"):
                partial.unlink(missing_ok=True)  # of a process that was killed while it wrote
            try:
                yield
            finally:
                self._commit()

    def _key(self, kind: str, contents: Iterator[bytes]) -> str:
        digest = hashlib.sha256(f"{self._about} {kind} ".encode())
        for content in contents:
            digest.update(content)
        return digest.hexdigest()

    def _once(self, key: str, encode: Callable[[], EncodedBatch]) -> EncodedBatch:
        if key in self._waiting:
            return self._waiting[key]
        if key in self._found:
            return _read(self._found[key], key)
        batch = encode()
        if self.shard != ALL:
            self._waiting[key] = batch
            if time.monotonic() - self._last >= SECONDS_PER_FILE:
                self._commit()
        return batch

    def _commit(self) -> None:
        if self._waiting:
            path = self.folder / f"{time.time_ns():020d}.{self.shard}.safetensors"
            reasons = {key: batch.reasons for key, batch in self._waiting.items() if batch.reasons}
            tensors = {key: batch.embeds.contiguous() for key, batch in self._waiting.items()}
            with write_atomically(path) as file:
                file.write(save(tensors, {_REASONS: json.dumps(reasons)}))
            self._found |= dict.fromkeys(self._waiting, path)
            self._waiting = {}
        self._last = time.monotonic()


def _is_ours(path: str) -> bool:
    return any(kind.fullmatch(path) for kind in (_FILE, SHARD_LOCK, PARTIAL))


def _keys_of(path: Path) -> list[str]:
    with _opened(path) as file:
        return list(file.keys())


def _read(path: Path, key: str) -> EncodedBatch:
    with _opened(path) as file:
        reasons = parse_json((file.metadata() or {}).get(_REASONS, "{}")).get(key, {})
        return EncodedBatch(file.get_tensor(key), {int(place): reason for place, reason in reasons.items()})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"`encoded` has {path}, which is damaged ({error}); expected what a share wrote. Delete it."
        ) from error
