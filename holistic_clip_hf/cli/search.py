# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Find images by what they show, seen from a perspective of your choice.

First make an index. Run it again if images were added, changed or deleted, or if it was interrupted:

  holistic-clip search index photos --model runs/emoji/holistic --index photos.index

Then ask. Terms stand between semicolons. Before a text stands the perspective that decides, or `not` for what counts
against an image, and behind it `^` and its weight:

  holistic-clip search find "main object: a dog; background: snow; not style: drawing^0.5" --index photos.index
  holistic-clip search find --like photos/dog.jpg --perspective style --index photos.index --why
  holistic-clip search find "a dog" --index photos.index --path "2024/*" --picture found.png
  holistic-clip search check --index photos.index
  holistic-clip search export --index photos.index --qdrant http://localhost:6333 --collection photos
"""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg, subcommand

if TYPE_CHECKING:
    from ..images.sources import Images
    from ..search import Hit, SearchIndex


@dataclass(frozen=True)
class Index:
    """Make an index, or bring it up to date.

    Args:
        images: Folder of images, folder of a corpus, or the name of a corpus in the cache, such as emoji.
        model: Folder of a checkpoint, or its name on the Hub.
        index: Folder of the index.
        vectors: Vectors to keep; `fused` is smaller and knows no perspectives.
        lookup: Way to look vectors up; `auto` is exact up to a million images.
        columns: Columns of a corpus to filter by.
        batch_size: Number of images that are encoded together.
    """

    images: Positional[str]
    model: str
    index: Path
    vectors: Literal["branches", "fused"] = "branches"
    lookup: Literal["auto", "exact", "ivf", "hnsw"] = "auto"
    columns: tuple[str, ...] = ()
    batch_size: int = 64

    def __call__(self) -> None:
        """Tell the size before, index, and print what was done.

        Raises:
            ValueError: no such images or checkpoint, or an index of another checkpoint.
        """
        from ..evaluation.encoding import load_checkpoint
        from ..search import estimate_bytes, index_images
        from ..search.indexing import require_index_place

        images = open_images(self.images, list(self.columns))
        require_index_place(self.index, images)  # before a checkpoint is loaded, and a size told
        model, processor = load_checkpoint(self.model)
        count = sum(hasattr(each, "stamp") for each in images.items())
        size = estimate_bytes(model.config, count, vectors=self.vectors, lookup=self.lookup)
        print(f"{count:,} images: the index will take about {size / 1e6:,.1f} MB at {self.index}.")
        report = index_images(
            self.index,
            images,
            model,
            processor,
            vectors=self.vectors,
            lookup=self.lookup,
            batch_size=self.batch_size,
            progress=True,
        )
        print(report)


@dataclass(frozen=True)
class Find:
    """Ask an index.

    Args:
        query: Text of the query; see the help of `holistic-clip search`.
        index: Folder of the index.
        model: Folder of the checkpoint. Default: where the one lay that made the index.
        like: Image like which others are sought.
        perspective: Perspective in which they are alike. Default: all branches.
        k: Number of images to show.
        path: Pattern that the path of an image matches, such as `2024/*`.
        where: Columns and the values that images have, as COLUMN=VALUE.
        why: Print what each term and branch added to the score.
        picture: PNG file to draw what is found into.
    """

    index: Path
    query: Positional[str] = ""
    model: str | None = None
    like: Path | None = None
    perspective: str = "fused"
    k: Annotated[int, arg(aliases=["-k"])] = 10
    path: str | None = None
    where: tuple[str, ...] = ()
    why: bool = False
    picture: Path | None = None

    def __call__(self) -> None:
        """Print what is found, best first.

        Raises:
            ValueError: no such index, or a query, column or image that cannot be used.
        """
        from ..images.decoding import decode
        from ..search import Filter, Term
        from ..visualization import ResultRow, result_grid

        if self.picture and self.like and self.picture.resolve() == self.like.resolve():
            raise ValueError(
                f"`--picture` is {self.picture}, the image of `--like`; expected another. Name a new file."
            )
        columns = parse_conditions(self.where)
        index = open_index(self.index, self.model)
        terms = index.parse(self.query) if self.query else []
        if self.like:
            terms.append(Term(image=decode(self.like.read_bytes()), perspective=self.perspective))
        hits = index.search(terms, k=self.k, where=Filter(columns, path=self.path))
        for hit in hits:
            print(f"{hit.score:8.3f}  {hit.image_id}")
            if self.why:
                print("\n".join(reasons(hit)))
        if self.picture:
            row = ResultRow("search", self.query or "like the example", range(len(hits)), ())
            result_grid([row], [index.image(hit.image_id) for hit in hits]).save(self.picture)


@dataclass(frozen=True)
class Check:
    """Read all of an index, to see that it is as it was written.

    Args:
        index: Folder of the index.
    """

    index: Path

    def __call__(self) -> None:
        """Print how many files were read.

        Raises:
            ValueError: a file is missing or damaged.
        """
        from ..search import verify_index

        print(f"{self.index}: {verify_index(self.index)} files, all as they were written.")


@dataclass(frozen=True)
class Export:
    """Copy an index into a collection of Qdrant.

    Args:
        index: Folder of the index.
        qdrant: Address of a server, such as http://localhost:6333, or a folder for Qdrant's local mode.
        collection: Name of the collection.
        model: Folder of the checkpoint. Default: where the one lay that made the index.
        batch_size: Number of points that are sent together.
    """

    index: Path
    qdrant: str
    collection: str
    model: str | None = None
    batch_size: int = 256

    def __call__(self) -> None:
        """Export, and print the number of points.

        Raises:
            ImportError: qdrant-client is not installed.
            ValueError: a collection with other vectors, or of another checkpoint.
        """
        from ..search.qdrant import export_to_qdrant, open_client

        with closing(open_client(self.qdrant)) as client:
            index = open_index(self.index, self.model)
            count = export_to_qdrant(index, client, self.collection, batch_size=self.batch_size, progress=True)
        print(f"{self.collection} at {self.qdrant}: {count:,} images.")


Command = (
    Annotated[Index, subcommand("index", prefix_name=False)]
    | Annotated[Find, subcommand("find", prefix_name=False)]
    | Annotated[Check, subcommand("check", prefix_name=False)]
    | Annotated[Export, subcommand("export", prefix_name=False)]
)


def open_images(name: str, columns: list[str]) -> "Images":
    """Open a folder of images, or a corpus by its folder or its name in the cache.

    Raises:
        ValueError: no such folder, or columns of a folder that is not a corpus.
    """
    from ..corpus.build import MANIFEST, find_corpus, load_corpus
    from ..images.folders import FolderImages
    from ..images.tables import DatasetImages

    try:
        directory = find_corpus(name)
    except ValueError as error:
        raise ValueError(
            f"`images` is {name}, which is not a folder, nor a corpus of the cache; expected a folder of images or of "
            "a corpus. Correct the path."
        ) from error
    if (directory / MANIFEST).is_file():
        return DatasetImages(load_corpus(directory), columns=columns, name=str(directory))
    if columns:
        raise ValueError(
            f"`--columns` is {' '.join(columns)}; expected none, since {name} is a folder of images. Leave it out, or "
            "index a corpus."
        )
    return FolderImages(directory)


def open_index(directory: Path, model_name: str | None) -> "SearchIndex":
    """Open an index with its checkpoint and its images.

    Raises:
        ValueError: no such index, checkpoint or images.
    """
    from ..evaluation.encoding import load_checkpoint
    from ..search import SearchIndex
    from ..search.store import read_index_manifest

    manifest = read_index_manifest(directory)
    model, processor = load_checkpoint(model_name or manifest.model)
    images = None
    if manifest.origin["kind"] != "folder":
        images = open_images(manifest.origin["name"], list(manifest.layout.columns))
    return SearchIndex(directory, model, processor, images=images)


def parse_conditions(given: tuple[str, ...]) -> dict[str, str]:
    """Read `COLUMN=VALUE` conditions.

    Raises:
        ValueError: one without an equals sign.
    """
    for condition in given:
        if "=" not in condition:
            raise ValueError(f"`--where` is {condition!r}; expected COLUMN=VALUE.")
    return dict(condition.split("=", maxsplit=1) for condition in given)


def reasons(hit: "Hit") -> list[str]:
    """Return a line for each term, with what it added and by which branches."""
    lines = []
    for part in hit.parts:
        branches = ", ".join(f"{name} {value:+.3f}" for name, value in part.by_branch.items())
        against = "not " if part.term.weight < 0 else ""
        lines.append(f"{part.score:+15.3f}  {against}{part.term} ({branches})")
    return lines
