"""Sources of images as options of a command: `folder`, `list`, `official`, `tar`, `dataset`, and those of packages."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from datasets import Dataset, load_dataset, load_from_disk

from holistic_clip_hf.corpus.archives import TarShards
from holistic_clip_hf.corpus.folders import LISTINGS, ImageFolder, ListedImages, official_json_lines
from holistic_clip_hf.corpus.source import Source
from holistic_clip_hf.corpus.tables import TableSource

CAPTION_HELP = (
    "which column holds captions, and their perspective: `alt=web`; `captions=short` where the column has a list of "
    "them; `captions=web,detail` where their position tells the perspective; `detail` if both names are the same. "
    "Repeat it for several columns"
)


def parse_columns(given: Sequence[str]) -> dict[str, str | list[str]]:
    """`["alt=web", "captions=short,detail", "style"]` → columns and perspectives; no column twice."""
    columns: dict[str, str | list[str]] = {}
    for each in given:
        column, _, names = each.partition("=")
        if column in columns:
            raise ValueError(f"Got the column {column!r} twice; expected each once. Join them: {column}=first,second.")
        columns[column] = names.split(",") if "," in names else names or column
    return columns


def add_sources(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    common: Callable[[], list[argparse.ArgumentParser]],
) -> list[argparse.ArgumentParser]:
    """A command for each kind of source, each with options of its own as `common` makes them.

    The chosen source is `options.open_source(options)`.
    """
    added = []

    def add(name: str, summary: str, run: Callable[[argparse.Namespace], Source]) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=summary, description=f"{summary}.", parents=common())
        parser.add_argument("--name", default="", help="of the source, in its captions; default: the folder's")
        parser.set_defaults(open_source=run)
        added.append(parser)
        return parser

    folder = add("folder", "a folder of images, with metadata.csv, metadata.jsonl or a .txt beside each", _open_folder)
    folder.add_argument("root", type=Path)
    folder.add_argument("--caption", action="append", default=[], metavar="COLUMN=PERSPECTIVE", help=CAPTION_HELP)
    folder.add_argument("--perspective", default="short", help="of the .txt files, where there is no metadata file")

    listed = add("list", "the images that a file in CSV or JSON lines names", _open_list)
    listed.add_argument("listing", type=Path)
    listed.add_argument("--root", type=Path, help="the folder of the images; default: that of the list")
    listed.add_argument("--image-column", default="file_name", help="the column with the path; default: file_name")
    listed.add_argument("--caption", action="append", default=[], metavar="COLUMN=PERSPECTIVE", help=CAPTION_HELP)

    official = add("official", 'the paper\'s JSON lines, {"image": path, "caption": [text, ...]}', _open_official)
    official.add_argument("listing", type=Path)
    official.add_argument("--root", type=Path, required=True, help="the folder of the images")
    official.add_argument("--positions", nargs="+", required=True, help="the perspective of each position, in order")

    tar = add("tar", "webdataset shards, as img2dataset writes them", _open_tar)
    tar.add_argument("archives", type=Path, nargs="+")
    tar.add_argument("--caption", action="append", default=[], metavar="ENDING=PERSPECTIVE", help=CAPTION_HELP)

    table = add("dataset", "a data set of the Hub, or one that `datasets` saved to disk", _open_dataset)
    table.add_argument("dataset", help="its name on the Hub, or its folder")
    table.add_argument("--config", help="which of its configurations")
    table.add_argument("--from-split", default="train", help="which of its splits; default: train")
    table.add_argument("--image-column", default="image")
    table.add_argument("--id-column", help="default: the number of the row is the image id")
    table.add_argument("--caption", action="append", default=[], metavar="COLUMN=PERSPECTIVE", help=CAPTION_HELP)
    return added


def _open_folder(options: argparse.Namespace) -> Source:
    listing = next((options.root / name for name in LISTINGS if (options.root / name).is_file()), None)
    if listing is not None:
        return ListedImages(listing, parse_columns(options.caption), name=options.name)
    if options.caption:
        raise ValueError(f"Got --caption, and {options.root} has neither {' nor '.join(LISTINGS)}; leave it out.")
    return ImageFolder(options.root, perspective=options.perspective, name=options.name)


def _open_list(options: argparse.Namespace) -> Source:
    columns = parse_columns(options.caption)
    return ListedImages(
        options.listing, columns, root=options.root, image_column=options.image_column, name=options.name
    )


def _open_official(options: argparse.Namespace) -> Source:
    return official_json_lines(options.listing, options.positions, root=options.root, name=options.name)


def _open_tar(options: argparse.Namespace) -> Source:
    return TarShards(options.archives, parse_columns(options.caption), name=options.name)


def _open_dataset(options: argparse.Namespace) -> Source:
    if Path(options.dataset, "state.json").is_file() or Path(options.dataset, "dataset_dict.json").is_file():
        loaded = load_from_disk(options.dataset)
        dataset = loaded if isinstance(loaded, Dataset) else loaded[options.from_split]
    else:
        dataset = load_dataset(options.dataset, options.config, split=options.from_split)
    return TableSource(
        dataset,
        parse_columns(options.caption),
        name=options.name or options.dataset,
        image_column=options.image_column,
        id_column=options.id_column,
    )
