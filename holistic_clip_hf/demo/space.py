# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Folder of a Space: the page with its images, index and checkpoint, to be pushed as it is or run in a container.

What leaves is what the page shows: images of the index, and a checkpoint as it would be published. No path of this
machine is in it.
"""

import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import gradio
from huggingface_hub import SpaceCardData
from packaging.requirements import Requirement
from packaging.version import Version

from .. import __version__
from ..corpus.build import MANIFEST as CORPUS
from ..evaluation.records import commit_of_checkout
from ..images.folders import FOLLOWED, FolderImages
from ..publishing.checkpoint import stage
from ..publishing.hub import files_of_corpus
from ..publishing.model_card import known_facts
from ..search.store import CAPTION_VECTORS, read_index_manifest, write_index_manifest
from ..storage import folder_bytes, new_folder, raise_if_disk_full
from .showcase import Showcase

PACKAGE, EXTRAS = "holistic-clip-hf", ("demo", "search")
IMAGES, INDEX, CHECKPOINT = "images", "images.index", "checkpoint"
TITLE = "Holistic search"
PORT = 7860  # that Spaces listen to
USER_ID = 1000  # that Spaces run containers as

_PROGRAM = '''"""Page that finds images by perspective. Written by `holistic-clip demo --write-space`."""

import os

from holistic_clip_hf.cli.main import main

if __name__ == "__main__":
    port = os.environ.get("GRADIO_SERVER_PORT", "{port}")
    main(["demo", {checkpoint!r}, "{images}", "--index", "{index}", "--host", "0.0.0.0", "--port", port])
'''

_CONTAINER = """# docker build -t page . && docker run -p 127.0.0.1:{port}:{port} page
FROM python:{python}-slim

ENV HF_HOME=/tmp/huggingface \\
    PYTHONDONTWRITEBYTECODE=1 \\
    PYTHONUNBUFFERED=1

RUN useradd --no-create-home --uid {user} page
WORKDIR /page
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY --chown=page . .
USER {user}

EXPOSE {port}
HEALTHCHECK --start-period=300s --interval=30s --timeout=10s \\
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}/', timeout=8)"]
CMD ["python", "app.py"]
"""

_README = """---
{card}
---

# {title}

{num_images:,} images, searched by perspective with {model}.

Push this folder to a Space of the kind *gradio*:

```bash
hf upload owner/name . --repo-type space
```

Or run it here:

```bash
pip install -r requirements.txt
python app.py
```

`Dockerfile` runs the same in a container, without root.
"""


@dataclass(frozen=True)
class Space:
    """Space that was written.

    Args:
        num_images: Number of its images.
        num_left_out: Number of images that the index could not read, which are not in it.
        num_bytes: Size of the folder.
    """

    num_images: int
    num_left_out: int
    num_bytes: int


def write_space(showcase: Showcase, checkpoint: str, images: str | Path, output: str | Path) -> Space:
    """Write what a Space needs to serve a showcase, which `open_showcase` has opened.

    Args:
        showcase: Showcase of the images.
        checkpoint: Folder of the checkpoint, which is copied, or its name on the Hub, by which the Space loads it.
        images: Folder of images or corpus that the showcase was opened on.
        output: Folder to write, new or empty.

    Raises:
        ValueError: `output` holds anything; a checkpoint or corpus that may not be published.
        OSError: the disk is full.
    """
    is_local, images = Path(checkpoint).is_dir(), Path(images)
    with new_folder(Path(output), holds="a Space") as folder:
        try:
            if (images / CORPUS).is_file():
                _copy_files(files_of_corpus(images), folder / IMAGES)
            else:
                links = bool(FOLLOWED.keys() & showcase.index.manifest.origin.keys())
                _copy_images(FolderImages(images, follow_links=links), showcase.index.image_ids, folder / IMAGES)
            num_left_out = _copy_index(showcase, folder / INDEX)
            if is_local:
                stage(Path(checkpoint), folder / CHECKPOINT, known_facts(Path(checkpoint)))
            for name, text in _texts(showcase, CHECKPOINT if is_local else checkpoint, is_local).items():
                (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise_if_disk_full(error, folder)
            raise
        num_bytes = folder_bytes(folder)
    return Space(len(showcase.index), num_left_out, num_bytes)


def _copy_images(source: FolderImages, image_ids: list[str], folder: Path) -> None:
    for image_id in image_ids:
        place = folder / image_id
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(source.read(image_id))


def _copy_files(files: dict[str, Path], folder: Path) -> None:
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)


def _copy_index(showcase: Showcase, folder: Path) -> int:
    """Copy an index that names no folder of this machine, and return how many images it could not read."""
    directory = showcase.index.directory
    manifest = read_index_manifest(directory)
    names = [each.file for each in (*manifest.segments, *manifest.neighbours.values())]
    names += [CAPTION_VECTORS] if (directory / CAPTION_VECTORS).is_file() else []
    _copy_files({name: directory / name for name in names}, folder)
    # Links were followed when their files were copied; there are none in the Space.
    places = {name: value for name, value in manifest.origin.items() if name not in FOLLOWED}
    origin = {name: value if name == "kind" else IMAGES for name, value in places.items()}
    write_index_manifest(folder, replace(manifest, model=showcase.name, origin=origin, left_out=[]))
    return len(manifest.left_out)


def _texts(showcase: Showcase, checkpoint: str, is_local: bool) -> dict[str, str]:
    """Return the files that are written, by name."""
    card = SpaceCardData(
        title=TITLE,
        sdk="gradio",
        sdk_version=gradio.__version__,
        python_version=".".join(platform.python_version_tuple()[:2]),
        app_file="app.py",
        models=None if is_local else [checkpoint],
        tags=["holistic-clip"],
    )
    told = {"title": TITLE, "num_images": len(showcase.index), "model": showcase.name}
    return {
        "app.py": _PROGRAM.format(checkpoint=checkpoint, images=IMAGES, index=INDEX, port=PORT),
        "requirements.txt": "\n".join([*_requirements(), ""]),
        "README.md": _README.format(card=card.to_yaml(), **told),
        "Dockerfile": _CONTAINER.format(python=platform.python_version(), port=PORT, user=USER_ID),
        ".dockerignore": ".git\n.cache\n",
    }


def _requirements() -> Iterator[str]:
    """Yield this package and what it builds on, all at the versions that are installed here."""
    if commit := commit_of_checkout():
        yield f"{PACKAGE}[demo] @ {metadata.metadata(PACKAGE)['Home-page']}/archive/{commit}.zip"
    else:
        yield f"{PACKAGE}[demo]=={__version__}"
    named = map(Requirement, metadata.requires(PACKAGE) or ())
    needed = {each.name for each in named if each.marker is None or _is_asked(each)}
    for name in sorted(needed - {PACKAGE}):
        yield f"{name}=={Version(metadata.version(name)).public}"


def _is_asked(requirement: Requirement) -> bool:
    return any(requirement.marker.evaluate({"extra": extra}) for extra in EXTRAS) if requirement.marker else True
