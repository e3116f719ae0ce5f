# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Identity of a captioner: a hash of its weights, which neither its folder's name nor a branch's tells."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import hf_hub_download

_INDEX, _SINGLE, _ADAPTER = "model.safetensors.index.json", "model.safetensors", "adapter_model.safetensors"
_LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
# Training moves numbers all over a tensor, so that a sample of each tells two checkpoints apart: 32 kB of it cost
# nothing, where reading 15 GB takes as long as loading them.
_BLOCKS, _BYTES_PER_BLOCK = 64, 512


class _Tensor(NamedTuple):
    """A tensor of a file, from the byte `begin` on."""

    name: str
    kind: str
    path: Path
    begin: int
    size: int


class Version(NamedTuple):
    """Commit of a model on the Hub, or nothing of a folder; and the hash of its weights, or nothing if not found."""

    commit: str
    weights: str


def version_of(name: str, revision: str | None) -> Version:
    """Return which version of a model is on this machine, after it was loaded.

    Args:
        name: Name on the Hub, or a folder.
        revision: Branch, tag or commit of a name on the Hub.
    """
    if Path(name).is_dir():
        return Version("", hash_weights(Path(name)))
    try:
        folder = Path(hf_hub_download(name, "config.json", revision=revision)).parent
    except (OSError, ValueError):  # not in the cache that huggingface_hub knows
        return Version("", "")
    return Version(folder.name if re.fullmatch("[0-9a-f]{40}", folder.name) else "", hash_weights(folder))


def hash_weights(folder: Path) -> str:
    """Return 16 hexadecimal digits that stand for the weights in a folder; nothing if it has none in safetensors.

    How the weights are divided into files does not count.
    """
    digest = hashlib.sha256()
    tensors = [tensor for path in _files(folder) for tensor in _tensors(path)]
    for tensor in sorted(tensors):
        digest.update(json.dumps([tensor.name, tensor.kind]).encode())
        with open(tensor.path, "rb") as file:
            for place in _places(tensor.size):
                file.seek(tensor.begin + place)
                digest.update(file.read(min(_BYTES_PER_BLOCK, tensor.size - place)))
    return digest.hexdigest()[:16] if tensors else ""


def _files(folder: Path) -> list[Path]:
    """Return the files that transformers reads, of those that a folder holds."""
    if (index := folder / _INDEX).is_file():
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    elif (folder / _SINGLE).is_file():
        names = {_SINGLE}
    else:
        names = {path.name for path in folder.glob("*.safetensors")}
    return sorted(folder / name for name in {*names, _ADAPTER} if (folder / name).is_file())


def _tensors(path: Path) -> list[_Tensor]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length)) if length <= _LONGEST_HEADER else {}
    header.pop("__metadata__", None)
    found = []
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        found.append(_Tensor(name, f"{entry['dtype']} {entry['shape']}", path, 8 + length + begin, end - begin))
    return found


def _places(size: int) -> range:
    """Return where blocks of a tensor begin: all of a small one, some of a large one, its ends included."""
    if size <= _BLOCKS * _BYTES_PER_BLOCK:
        return range(0, size, _BYTES_PER_BLOCK)
    step = (size - _BYTES_PER_BLOCK) // (_BLOCKS - 1)
    return range(0, step * _BLOCKS, step)
