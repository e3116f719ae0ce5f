# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Sources of images as subcommands: `folder`, `list`, `official`, `tar`, `dataset`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction, arg, subcommand

if TYPE_CHECKING:
    from ..images.sources import Source

CaptionOptions = Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="COLUMN=PERSPECTIVE")]


@dataclass(frozen=True)
class Folder:
    """Images below a folder, with metadata.csv, metadata.jsonl or a .txt file beside each.

    Args:
        root: Folder of the images.
        caption: Column that holds captions, and their perspective, as `alt=web`. Say `texts=short` if the column has
            a list of them, `texts=web,detail` if their position tells the perspective, `detail` if both names are
            the same.
        perspective: Perspective of the .txt files, used without a metadata file.
        name: Name of the source in its captions. Default: the folder's.
    """

    root: Positional[Path]
    caption: CaptionOptions = ()
    perspective: str = "short"
    name: str = ""

    def open(self) -> "Source":
        """Open the source.

        Raises:
            ValueError: `caption` without a metadata file, or no such folder.
        """
        from ..images.folders import LISTINGS, ImageFolder, ListedImages

        listing = next((self.root / name for name in LISTINGS if (self.root / name).is_file()), None)
        if listing is not None:
            return ListedImages(listing, parse_columns(self.caption), name=self.name)
        if self.caption:
            raise ValueError(
                f"`--caption` is {' '.join(self.caption)}; expected none, since {self.root} has neither "
                f"{' nor '.join(LISTINGS)}. Leave it out, or use `list` and name the file."
            )
        return ImageFolder(self.root, perspective=self.perspective, name=self.name)


@dataclass(frozen=True)
class Listed:
    """Images that a file in CSV or JSON lines names.

    Args:
        listing: File with a line per image.
        root: Folder of the images. Default: that of the list.
        image_column: Column with the path of the image.
        caption: Column that holds captions, and their perspective; see `folder`.
        name: Name of the source in its captions. Default: the folder's.
    """

    listing: Positional[Path]
    root: Path | None = None
    image_column: str = "file_name"
    caption: CaptionOptions = ()
    name: str = ""

    def open(self) -> "Source":
        """Open the source.

        Raises:
            ValueError: no such file or folder.
        """
        from ..images.folders import ListedImages

        columns = parse_columns(self.caption)
        return ListedImages(self.listing, columns, root=self.root, image_column=self.image_column, name=self.name)


@dataclass(frozen=True)
class Official:
    """The paper's JSON lines, {"image": path, "caption": [text, ...]}.

    Args:
        listing: File with a line per image.
        root: Folder of the images.
        positions: Perspective of each position of the list, in order.
        name: Name of the source in its captions. Default: the folder's.
    """

    listing: Positional[Path]
    root: Path
    positions: tuple[str, ...]
    name: str = ""

    def open(self) -> "Source":
        """Open the source.

        Raises:
            ValueError: no such file or folder.
        """
        from ..images.folders import official_json_lines

        return official_json_lines(self.listing, self.positions, root=self.root, name=self.name)


@dataclass(frozen=True)
class Tar:
    """Webdataset shards, as img2dataset writes them.

    Args:
        archives: Tar archives, not compressed.
        caption: Ending or JSON field that holds captions, and their perspective; see `folder`.
        name: Name of the source in its captions. Default: the folder's.
    """

    archives: Positional[tuple[Path, ...]]
    caption: CaptionOptions = ()
    name: str = ""

    def open(self) -> "Source":
        """Open the source.

        Raises:
            ValueError: no archive, or one that cannot be read in place.
        """
        from ..images.archives import TarShards

        return TarShards(self.archives, parse_columns(self.caption), name=self.name)


@dataclass(frozen=True)
class Table:
    """A dataset of the Hub, or one that `datasets` saved to disk.

    Args:
        dataset: Name on the Hub, or folder.
        config: Configuration of the dataset.
        from_split: Split of the dataset.
        image_column: Column with the images.
        id_column: Column with image ids. Default: the number of the row.
        caption: Column that holds captions, and their perspective; see `folder`.
        name: Name of the source in its captions. Default: the dataset's.
    """

    dataset: Positional[str]
    config: str | None = None
    from_split: str = "train"
    image_column: str = "image"
    id_column: str | None = None
    caption: CaptionOptions = ()
    name: str = ""

    def open(self) -> "Source":
        """Open the source.

        Raises:
            ValueError: a column that the dataset lacks.
        """
        from ..images.tables import TableSource, load_table

        return TableSource(
            load_table(self.dataset, self.config, self.from_split),
            parse_columns(self.caption),
            name=self.name or self.dataset,
            image_column=self.image_column,
            id_column=self.id_column,
            folders=[Path(self.dataset)] if Path(self.dataset).is_dir() else (),
        )


AnySource = (
    Annotated[Folder, subcommand("folder", prefix_name=False)]
    | Annotated[Listed, subcommand("list", prefix_name=False)]
    | Annotated[Official, subcommand("official", prefix_name=False)]
    | Annotated[Tar, subcommand("tar", prefix_name=False)]
    | Annotated[Table, subcommand("dataset", prefix_name=False)]
)


def parse_columns(given: Sequence[str]) -> dict[str, str | list[str]]:
    """Read `["alt=web", "captions=short,detail", "style"]` as columns and perspectives.

    Raises:
        ValueError: a column is named twice.
    """
    columns: dict[str, str | list[str]] = {}
    for each in given:
        column, _, names = each.partition("=")
        if column in columns:
            raise ValueError(
                f"`--caption` names the column {column!r} twice; expected each column once. Join them: "
                f"{column}=first,second."
            )
        columns[column] = names.split(",") if "," in names else names or column
    return columns
