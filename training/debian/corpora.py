# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The corpora whose images and captions are in Debian packages: their sources, and what their cards say."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from holistic_clip_hf.corpus.card import CorpusFacts
from holistic_clip_hf.images.sources import Source
from training.debian import fashion_mnist, openclipart, tuxpaint
from training.debian.packages import DebianPackage, load_packages, unpack


class DebianCorpus(NamedTuple):
    """Packages of a corpus, what they become, and what the card says."""

    packages: tuple[str, ...]
    open: Callable[..., Source]  # given the folder of each package, and what stands for their content
    description: str
    license: str


CORPORA = {
    tuxpaint.NAME: DebianCorpus(
        ("tuxpaint-stamps-default",),
        tuxpaint.TuxPaint,
        "Cut-out photographs and drawings of a children's painting program, each with a sentence (`short`) and the "
        "folders it lies in (`category`).",
        "gpl-2.0",
    ),
    openclipart.NAME: DebianCorpus(
        ("openclipart-png", "openclipart-svg"),
        openclipart.OpenClipArt,
        "Drawings of many artists, given to the public domain, with their title (`short`), keywords (`nouns`), "
        "sometimes a description (`detail`), and the folders they lie in (`category`).",
        "other",
    ),
    fashion_mnist.NAME: DebianCorpus(
        ("dataset-fashion-mnist",),
        fashion_mnist.FashionMNIST,
        "Grey pictures of clothes, 28 pixels square, with the name of their class (`class`). The test split is the "
        "data set's own.",
        "mit",
    ),
}


def open_debian(name: str, cache: Path) -> tuple[Source, CorpusFacts]:
    """Return the source called `name`, its packages fetched into `cache` unless they are there, and the facts for its
    card.

    Raises:
        ValueError: no apt here, or a package that is not the one pinned.
        OSError: a package could not be fetched.
    """
    corpus, known = CORPORA[name], load_packages()
    packages = [known[package] for package in corpus.packages]
    source = corpus.open(*(unpack(package, cache / "packages") for package in packages), _stamp(packages))
    title = packages[0].title
    from_where = ", ".join(f"`{package.name}` {package.version}" for package in packages)
    facts = CorpusFacts(
        title=title,
        description=f"{corpus.description} From the Debian package {from_where}; licence: {packages[0].license}.",
        license=corpus.license,
        languages=("en",),
        command=f"python -m training.debian {name}",
    )
    return source, facts


def _stamp(packages: list[DebianPackage]) -> str:
    return " ".join(package.sha256[:12] for package in packages)
