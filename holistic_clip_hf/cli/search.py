# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Find images by what they show, seen from a perspective of your choice.

First make an index. Run it again if images were added, changed or deleted, or if it was interrupted:

  holistic-clip search index photos --model runs/emoji/holistic --index photos.index

Then ask. Terms stand between semicolons. Before a text stands the perspective that decides, or `not` for what counts
against an image, and behind it `^` and its weight. Beside an example, `but` says in what images are to differ from it:

  holistic-clip search find "main object: a dog; background: snow; not style: drawing^0.5" --index photos.index
  holistic-clip search find --like photos/dog.jpg --perspective style --index photos.index --why
  holistic-clip search find "but background: snow" --like photos/dog.jpg --index photos.index
  holistic-clip search find "a dog" --index photos.index --path "2024/*" --picture found.png
  holistic-clip search check --index photos.index

Of many images, keep smaller vectors in memory, or encode all anew while the index answers:

  holistic-clip search index photos --model runs/emoji/holistic --index photos.index --precision int8
  holistic-clip search index photos --model runs/emoji/better --index photos.index --rebuild
  holistic-clip search export --index photos.index --qdrant http://localhost:6333 --collection photos
"""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg, subcommand

from .corpus import AFTER_SHARES

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..images.sources import Images
    from ..search import Hit, SearchIndex
    from ..search.store import Manifest


@dataclass(frozen=True)
class Index:
    """Make an index, or bring it up to date.

    Args:
        images: Folder of images, folder of a corpus, or the name of a corpus in the cache, such as emoji.
        model: Folder of a checkpoint, or its name on the Hub.
        index: Folder of the index. One of the same images is brought up to date; it lies apart from the images.
        vectors: Vectors to keep; `fused` is smaller and knows no perspectives.
        lookup: Nearest-neighbour method; `auto` is exact up to a million images.
        precision: Numbers that a query reads and memory holds; whole vectors, on disk, decide. `auto` is what the
            index has, or whole ones.
        dimensions: Number of leading dimensions of each vector to keep. Default: as many as the index has, or all.
        columns: Columns of a corpus to filter by.
        batch_size: Number of images that are encoded together.
        shard: Share of the images for this process, as i/n, counted from 0. When all shards are done, run the same
            command without --shard.
        follow_links: Follow links in a folder of images, wherever they lead.
        replace: Permission to replace an index of other images.
        rebuild: Permission to encode all images anew, for another checkpoint or other options. The index answers as
            it is until the end, and is then replaced in one step.
    """

    images: Positional[str]
    model: str
    index: Path
    vectors: Literal["branches", "fused"] = "branches"
    lookup: Literal["auto", "exact", "ivf", "hnsw"] = "auto"
    precision: Literal["auto", "float32", "float16", "int8", "binary"] = "auto"
    dimensions: int | None = None
    columns: tuple[str, ...] = ()
    batch_size: int = 64
    shard: str = "0/1"
    follow_links: bool = False
    replace: bool = False
    rebuild: bool = False

    def __call__(self) -> None:
        """Tell the size before, index, and print what was done.

        Raises:
            ValueError: no such images or checkpoint, or an index of another checkpoint.
        """
        from ..evaluation.encoding import load_checkpoint
        from ..images.sources import Item
        from ..search import index_images
        from ..search.indexing import index_share, require_index_place, require_same_images
        from ..search.neighbours import choose_lookup, choose_precision
        from ..sharding import ALL, Shard
        from ..storage import require_count

        require_count("--batch-size", self.batch_size)
        require_count("--dimensions", self.dimensions)
        choose_precision(self.precision, choose_lookup(self.lookup, 0))
        shard = Shard.parse(self.shard)
        if shard != ALL and self.rebuild:
            raise ValueError(
                f"`--rebuild` is given with `--shard {self.shard}`; expected one of them, since shares add to "
                "the index of before. Index into another folder, in shares."
            )
        images = open_images(self.images, list(self.columns), follow_links=self.follow_links)
        require_index_place(self.index, images)  # before a model is loaded
        items = {each.image_id: each for each in images.items() if isinstance(each, Item)}
        if not self.replace:
            require_same_images(self.index, images, items)
        model, processor = load_checkpoint(self.model)
        print(self.forecast(model.config, len(items)))
        options: dict[str, Any] = {"vectors": self.vectors, "dimensions": self.dimensions}
        options |= {"batch_size": self.batch_size, "replace": self.replace, "progress": True}
        if shard != ALL:
            count, total = index_share(self.index, images, model, processor, shard=shard, **options)
            print(f"{count:,} of {total:,} segments of {self.index} are encoded. {AFTER_SHARES}")
            return
        options |= {"lookup": self.lookup, "precision": self.precision, "rebuild": self.rebuild}
        print(index_images(self.index, images, model, processor, **options))

    def forecast(self, config: Any, num_images: int) -> str:
        """Say what the index will take on disk, and in memory if queries read smaller vectors, and what these find."""
        from ..search import estimate_bytes
        from ..search.indexing import choose_form, choose_width
        from ..search.neighbours import EXPECTED_RECALL, estimate_lookup_bytes
        from ..search.store import find_index_manifest

        lookup, precision = choose_form(self.lookup, self.precision, num_images, find_index_manifest(self.index))
        about: dict[str, Any] = {"lookup": lookup, "precision": precision}
        width = self.dimensions or choose_width(config, None, None if self.rebuild else self.index)
        size = estimate_bytes(config, num_images, vectors=self.vectors, dimensions=width, **about)
        num_kinds = config.num_branches if self.vectors == "branches" else 1
        read = estimate_lookup_bytes(num_kinds, width, num_images, **about)
        told = f"{num_images:,} images: the index will take about {size / 1e6:,.1f} MB at {self.index}."
        if not read:
            return told
        return (
            f"{told} Queries keep {read / 1e6:,.1f} MB of it in memory, in {precision}, which proposed "
            f"{EXPECTED_RECALL[precision]:.1%} of the 10 nearest in the benchmark, by reading all."
        )


@dataclass(frozen=True)
class Find:
    """Search an index.

    Args:
        query: Text of the query; see the help of `holistic-clip search`.
        index: Folder of the index.
        model: Folder of the checkpoint. Default: the checkpoint that made the index.
        like: Example image; find images similar to it.
        perspective: Perspective in which they are similar. Default: all branches.
        k: Number of images to show.
        path: Pattern for the paths of images, such as `2024/*`.
        where: Columns and the values that images have there; of several values of one column, one is enough.
        fold: Name near-duplicates of a better image behind it, and not in lines of their own.
        why: Print what each term and branch added to the score.
        skip_damaged: Search the rest of an index of which files are damaged. They are named.
        nearest: Print the nearest images even where none of them seems to fit.
        picture: PNG file to draw what is found into; one that was drawn before is replaced.
    """

    index: Path
    query: Positional[str] = ""
    model: str | None = None
    like: Path | None = None
    perspective: str | None = None
    k: Annotated[int, arg(aliases=["-k"])] = 10
    path: str | None = None
    where: tuple[str, ...] = ()
    fold: bool = True
    why: bool = False
    skip_damaged: bool = False
    nearest: bool = False
    picture: Path | None = None

    def __call__(self) -> None:
        """Print what is found, best first.

        Raises:
            ValueError: no such index, a query, column or image that cannot be used, or no image that matches.
        """
        from ..drawing import save_picture
        from ..search import Filter, Fold, Folder
        from ..visualization import ResultRow, result_grid

        example, columns = self.check(), parse_conditions(self.where)
        index = open_index(self.index, self.model, skip_damaged=self.skip_damaged)
        terms = index.parse(self.query, like=example)
        if example is not None and self.perspective is not None:
            terms[0] = replace(terms[0], perspective=self.perspective)
        answer = index.answer(terms, k=self.k, where=Filter(columns, path=self.path))
        hits = answer.hits
        if not hits:
            told = [f"`--path {self.path}`"] * (self.path is not None) + [f"`--where {each}`" for each in self.where]
            raise ValueError(f"No image of {self.index} matches {' and '.join(told)}. Correct the filter.")
        if answer.found is False:
            print(f"Nothing found: the best of the images fits with a probability of {answer.best:.1%}.")
            if not self.nearest:
                print("Add --nearest to see the nearest images all the same.")
                return
        folds = Folder(index).fold(hits) if self.fold else [Fold(hit) for hit in hits]
        for fold in folds:
            hit = fold.hit
            likely = "" if hit.probability is None else f"{hit.probability:7.1%}  "
            print(f"{hit.score:8.3f}  {likely}{hit.image_id}")
            if fold.alike:
                print(f"{'':10}and {len(fold.alike)} alike: {', '.join(each.image_id for each in fold.alike)}")
            if self.why:
                print("\n".join(reasons(fold.hit)))
        if example is not None and index.is_calibrated:
            print("Queries with an example have no probabilities: the nearest are shown, whether any fits or not.")
        if self.picture:
            hits = [fold.hit for fold in folds]
            row = ResultRow("search", self.query or "like the example", range(len(hits)), ())
            save_picture(result_grid([row], [index.image(hit.image_id) for hit in hits]), self.picture)

    def check(self) -> "Image | None":
        """Check the options before a checkpoint is loaded, and return the example image.

        Raises:
            ValueError: an option that is missing or does not go with another, or an image that cannot be read.
        """
        from ..drawing import require_picture
        from ..search.store import folder_of, read_index_manifest
        from ..storage import require_count

        require_count("-k", self.k)
        if self.perspective is not None and self.like is None:
            raise ValueError(
                f"`--perspective` is {self.perspective}, that of an image; expected `--like` beside it. Name the "
                f"image, or write the perspective into the query, as '{self.perspective}: a dog'."
            )
        if not self.query and self.like is None:
            raise ValueError("The query is missing; expected a text, or an image by `--like`. Give one of them.")
        if self.picture:
            if self.like and self.picture.resolve() == self.like.resolve():
                raise ValueError(
                    f"`--picture` is {self.picture}, the image of `--like`; expected another. Name a new file."
                )
            folder = folder_of(read_index_manifest(self.index).origin)
            require_picture(self.picture, "--picture", [self.index, *([folder] if folder else [])])
        return None if self.like is None else read_example(self.like)


def read_example(path: Path) -> "Image":
    """Read the image of `--like`.

    Raises:
        ValueError: it cannot be read.
    """
    from ..images.decoding import UnreadableImageError, read_image
    from ..images.files import read_file

    try:
        return read_image(read_file(path))
    except (OSError, UnreadableImageError) as error:
        reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{path}: ")
        raise ValueError(
            f"`--like` is {path}, which cannot be read ({reason}); expected an image. Name another."
        ) from error


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
        model: Folder of the checkpoint. Default: the checkpoint that made the index.
        precision: Numbers that a server keeps in memory, if the collection is new.
        batch_size: Number of points that are sent together.
    """

    index: Path
    qdrant: str
    collection: str
    model: str | None = None
    precision: Literal["float32", "float16", "int8", "binary"] = "float32"
    batch_size: int = 256

    def __call__(self) -> None:
        """Export, and print the number of points.

        Raises:
            ImportError: qdrant-client is not installed.
            ValueError: a collection with other vectors, or of another checkpoint.
        """
        from ..search.qdrant import export_to_qdrant, open_client
        from ..storage import require_count

        require_count("--batch-size", self.batch_size)
        with closing(open_client(self.qdrant)) as client:
            index = open_index(self.index, self.model)
            about: dict[str, Any] = {"precision": self.precision, "batch_size": self.batch_size, "progress": True}
            count = export_to_qdrant(index, client, self.collection, **about)
        print(f"{self.collection} at {self.qdrant}: {count:,} images.")


@dataclass(frozen=True)
class Import:
    """Make an index of images whose vectors a collection of Qdrant holds.

    Args:
        images: Folder of images, folder of a corpus, or the name of a corpus in the cache, such as emoji.
        model: Folder of the checkpoint that made the vectors, or its name on the Hub.
        index: Folder of the index; it lies apart from the images.
        qdrant: Address of a server, such as http://localhost:6333, or a folder for Qdrant's local mode.
        collection: Name of the collection.
        columns: Columns of a corpus to filter by.
        batch_size: Number of points that are fetched together.
    """

    images: Positional[str]
    model: str
    index: Path
    qdrant: str
    collection: str
    columns: tuple[str, ...] = ()
    batch_size: int = 256

    def __call__(self) -> None:
        """Import, encode what the collection lacks, and print what was done.

        Raises:
            ImportError: qdrant-client is not installed.
            ValueError: no such images, checkpoint or collection, or one with other vectors or of another checkpoint.
        """
        from ..evaluation.encoding import load_checkpoint
        from ..search import index_images
        from ..search.indexing import require_index_place
        from ..search.qdrant import import_from_qdrant, layout_of, open_client
        from ..storage import require_count

        require_count("--batch-size", self.batch_size)
        images = open_images(self.images, list(self.columns))
        require_index_place(self.index, images)  # before a model is loaded
        model, processor = load_checkpoint(self.model)
        with closing(open_client(self.qdrant)) as client:
            layout = layout_of(client, self.collection, model, processor, images.features)
            count = import_from_qdrant(
                client, self.collection, self.index, layout, batch_size=self.batch_size, progress=True
            )
        print(f"{self.index}: {count:,} images from {self.collection}.")
        about: dict[str, Any] = {"vectors": layout.vectors, "dimensions": layout.width, "progress": True}
        print(index_images(self.index, images, model, processor, **about))


Command = (
    Annotated[Index, subcommand("index", prefix_name=False)]
    | Annotated[Find, subcommand("find", prefix_name=False)]
    | Annotated[Check, subcommand("check", prefix_name=False)]
    | Annotated[Export, subcommand("export", prefix_name=False)]
    | Annotated[Import, subcommand("import", prefix_name=False)]
)


def open_images(name: str, columns: list[str], *, follow_links: bool = False) -> "Images":
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
        return DatasetImages(load_corpus(directory), columns=columns, name=str(directory.resolve()))
    if columns:
        raise ValueError(
            f"`--columns` is {' '.join(columns)}; expected none, since {name} is a folder of images. Leave it out, or "
            "index a corpus."
        )
    return FolderImages(directory, follow_links=follow_links)


def open_index(directory: Path, model_name: str | None, *, skip_damaged: bool = False) -> "SearchIndex":
    """Open an index with its checkpoint and its images.

    Args:
        directory: Folder of the index.
        model_name: Folder or name of the checkpoint. Default: the one that the index names.
        skip_damaged: True to open what is whole of an index of which files are damaged.

    Raises:
        ValueError: no such index, checkpoint or images.
    """
    from ..evaluation.calibration import calibration_or_warning
    from ..evaluation.encoding import load_checkpoint
    from ..search import SearchIndex
    from ..search.store import read_index_manifest

    manifest = read_index_manifest(directory)
    try:
        model, processor = load_checkpoint(model_name or manifest.model)
    except ValueError as error:
        if model_name:
            raise
        raise ValueError(
            f"{directory} was made by {manifest.model or 'a checkpoint without a name'}, which cannot be loaded; "
            f"expected that checkpoint where it was. Name it with `--model`. ({error})"
        ) from error
    calibration, images = calibration_or_warning(model_name or manifest.model), images_of(manifest)
    return SearchIndex(directory, model, processor, images=images, calibration=calibration, skip_damaged=skip_damaged)


def images_of(manifest: "Manifest") -> "Images | None":
    """Open the corpus that was indexed, or return nothing for a folder, which the index opens itself.

    Raises:
        ValueError: no such corpus.
    """
    if manifest.origin["kind"] == "folder":
        return None
    return open_images(manifest.origin["name"], list(manifest.layout.columns))


def parse_conditions(given: tuple[str, ...]) -> dict[str, list[str]]:
    """Read `COLUMN=VALUE` conditions; of several values of a column, one is enough.

    Raises:
        ValueError: one without an equals sign.
    """
    from ..storage import shown

    columns: dict[str, list[str]] = {}
    for condition in given:
        column, found, value = condition.partition("=")
        if not found:
            raise ValueError(f"`--where` is {shown(condition)}; expected COLUMN=VALUE.")
        columns.setdefault(column, []).append(value)
    return columns


def reasons(hit: "Hit") -> list[str]:
    """Return a line for each term, with what it added and by which branches."""
    lines = []
    for part in hit.parts:
        branches = ", ".join(f"{name} {value:+.3f}" for name, value in part.by_branch.items())
        against = "not " if part.term.weight < 0 else ""
        lines.append(f"{part.score:+15.3f}  {against}{part.term} ({branches})")
    return lines
