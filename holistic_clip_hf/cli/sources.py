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
    """Images below a folder, with a list of them in it, or a .txt file beside each.

    Args:
        root: Folder of the images. Read are metadata.csv, .jsonl or .parquet in it or in each of its sub-folders, or
            the one list of a known layout; see docs/layouts.md.
        caption: Column that holds captions, and their perspective, as `alt=web`. Say `texts=short` if the column has
            a list of them, `texts=web,detail` if their position tells the perspective, `detail` if both names are
            the same. Default: the columns of a known layout.
        perspective: Perspective of the .txt files; a list names its own by --caption. Default: short.
        name: Name of the source in its captions. Default: the folder's.
    """

    root: Positional[Path]
    caption: CaptionOptions = ()
    perspective: str | None = None
    name: str = ""

    def open(self) -> "Source":
        """Open the source.

        Raises:
            ValueError: several lists, `caption` without a list, or no such folder.
        """
        from ..images.files import require_folder
        from ..images.folders import LISTINGS, ImageFolder, ListedFolder, find_lists

        lists = find_lists(require_folder(self.root))
        if len(lists) > 1 and lists[0].parent == self.root:
            raise ValueError(
                f"`root` is {self.root}, with the lists {', '.join(each.name for each in lists)}; expected one. Name "
                f"it with `list {lists[0]} --root {self.root}`."
            )
        if lists:
            if self.perspective is not None:
                raise ValueError(
                    f"`--perspective` is {self.perspective}; expected none, since {lists[0]} has the captions. Use "
                    f"--caption COLUMN={self.perspective}."
                )
            return ListedFolder(self.root, lists, parse_columns(self.caption), name=self.name)
        if self.caption:
            raise ValueError(
                f"`--caption` is {' '.join(self.caption)}; expected none, since {self.root} has neither "
                f"{' nor '.join(LISTINGS)}. Leave it out, or use `list` and name the file."
            )
        return ImageFolder(self.root, perspective=self.perspective or "short", name=self.name)


@dataclass(frozen=True)
class Listed:
    """Images that a list names: CSV, text with tabs, JSON lines, JSON, COCO's JSON or parquet.

    Args:
        listing: List with one record or several for each image. Its form is told from its contents.
        root: Folder of the images, which may lie in its sub-folders. Default: that of the list.
        image_column: Column with the path of the image. Default: one with a known name, such as file_name or image.
        caption: Column that holds captions, and their perspective; see `holistic-clip corpus folder --help`.
        name: Name of the source in its captions. Default: the folder's.
        encoding: Encoding of a text, unless it begins with a byte order mark.
        quotes: Double quotes enclose cells of a table; with --no-quotes they are letters.
        splits: Take splits from the column `split`, if it exists; with --no-splits a hash of the id decides.
    """

    listing: Positional[Path]
    root: Path | None = None
    image_column: str | None = None
    caption: CaptionOptions = ()
    name: str = ""
    encoding: str = "utf-8"
    quotes: bool = True
    splits: bool = True

    def open(self) -> "Source":
        """Open the source.

        Raises:
            ValueError: no such file or folder.
        """
        from ..images.folders import ListedImages
        from ..images.records import TextForm

        return ListedImages(
            self.listing,
            parse_columns(self.caption),
            root=self.root,
            image_column=self.image_column,
            name=self.name,
            form=TextForm(self.encoding, self.quotes),
            has_splits=self.splits,
        )


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
        archives: Tar archives, not compressed, or folders of them.
        caption: Ending or JSON field that holds captions, and their perspective; see `holistic-clip corpus folder
            --help`. Default: `txt=web`.
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

        found = [sorted(each.glob("*.tar")) if each.is_dir() else [each] for each in self.archives]
        if empty := [str(given) for given, paths in zip(self.archives, found, strict=True) if not paths]:
            raise ValueError(
                f"`archives` has {empty[0]}, a folder without a .tar file; expected archives that are not compressed. "
                "Correct the path, or unpack them with `gunzip`."
            )
        return TarShards([path for paths in found for path in paths], parse_columns(self.caption), name=self.name)


@dataclass(frozen=True)
class Table:
    """A dataset of the Hub, or one that `datasets` saved to disk.

    Args:
        dataset: Name on the Hub, folder, or file in parquet.
        config: Configuration of the dataset.
        from_split: Split of the dataset.
        image_column: Column with the images.
        id_column: Column with image ids; rows with one id are one image. Default: the number of the row.
        caption: Column that holds captions, and their perspective; see `holistic-clip corpus folder --help`.
        name: Name of the source in its captions. Default: the dataset's.
        splits: Take splits from the column `split`, if it exists; with --no-splits a hash of the id decides.
    """

    dataset: Positional[str]
    config: str | None = None
    from_split: str = "train"
    image_column: str = "image"
    id_column: str | None = None
    caption: CaptionOptions = ()
    name: str = ""
    splits: bool = True

    def open(self) -> "Source":
        """Open the source.

        Raises:
            ValueError: a column that the dataset lacks.
        """
        from ..images.layouts import SPLIT_COLUMN
        from ..images.tables import TableSource, load_table

        rows = load_table(self.dataset, self.config, self.from_split)
        return TableSource(
            rows if self.splits else rows.select_columns([each for each in rows.column_names if each != SPLIT_COLUMN]),
            parse_columns(self.caption),
            name=self.name or self.dataset,
            image_column=self.image_column,
            id_column=self.id_column,
            folders=[Path(self.dataset)] if Path(self.dataset).exists() else (),
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
        ValueError: a column is named twice, or has no name, or two equals signs behind it.
    """
    columns: dict[str, str | list[str]] = {}
    for each in given:
        column, _, names = each.partition("=")
        if not column or "=" in names:
            raise ValueError(
                f"`--caption` is {each}; expected COLUMN=PERSPECTIVE, such as alt=web, with one equals sign. "
                "Correct it."
            )
        if column in columns:
            raise ValueError(
                f"`--caption` names the column {column!r} twice; expected each column once. Join them: "
                f"{column}=first,second."
            )
        columns[column] = names.split(",") if "," in names else names or column
    return columns
