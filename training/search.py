"""Find images by what they show, seen from a perspective of your choice.

First make an index, once; run it again whenever images were added, changed or deleted, or if it was interrupted:

    python -m training.search index photos --model runs/emoji/holistic --index photos.index

Then ask. Terms stand between semicolons: a text, before it the perspective that should decide, `not` before what
counts against, behind it `^` and a number for its weight:

    python -m training.search find "main object: a dog; background: snow; not style: drawing^0.5" --index photos.index
    python -m training.search find --like photos/dog.jpg --perspective style --index photos.index --why
    python -m training.search find "a dog" --index photos.index --path "2024/*" --picture found.png
"""

import argparse
from pathlib import Path

from holistic_clip_hf.corpus.build import MANIFEST as CORPUS_MANIFEST
from holistic_clip_hf.corpus.build import load_corpus
from holistic_clip_hf.search import (
    FUSED,
    DatasetImages,
    Filter,
    FolderImages,
    Hit,
    SearchIndex,
    Term,
    estimate_bytes,
    index_images,
    verify_index,
)
from holistic_clip_hf.search.embedding import decode
from holistic_clip_hf.search.images import Images
from holistic_clip_hf.search.manifest import VECTORS, read_manifest
from holistic_clip_hf.search.sizes import LOOKUPS
from holistic_clip_hf.visualization import ResultRow, result_grid
from training.corpora.opening import corpus_directory
from training.evaluate import load_checkpoint


def open_images(name: str, columns: list[str]) -> Images:
    """`emoji`, a corpus directory, or a folder of images."""
    directory = corpus_directory(name)
    if not (directory / CORPUS_MANIFEST).is_file():
        if columns:
            raise ValueError(f"{name} is a folder, which has no columns {columns}. Valid: columns of a corpus.")
        return FolderImages(directory)
    return DatasetImages(load_corpus(directory), columns=columns, name=str(directory))


def make_index(options: argparse.Namespace) -> None:
    """Index, and tell the size before and what was done after."""
    images, (model, processor) = open_images(options.images, options.columns), load_checkpoint(options.model)
    count = sum(hasattr(each, "stamp") for each in images.items())
    size = estimate_bytes(model.config, count, vectors=options.vectors, lookup=options.lookup)
    print(f"{count:,} images: the index will take about {size / 1e6:,.1f} MB at {options.index}.")
    report = index_images(
        options.index,
        images,
        model,
        processor,
        vectors=options.vectors,
        lookup=options.lookup,
        batch_size=options.batch_size,
        progress=True,
    )
    print(report)


def find(options: argparse.Namespace) -> None:
    """Ask, and print what is found."""
    manifest = read_manifest(options.index)
    model, processor = load_checkpoint(options.model or manifest.model)
    images = None
    if manifest.origin["kind"] != "folder":
        images = open_images(manifest.origin["name"], list(manifest.layout.columns))
    index = SearchIndex(options.index, model, processor, images=images)
    terms = index.parse(options.query) if options.query else []
    if options.like:
        terms.append(Term(image=decode(options.like.read_bytes()), perspective=options.perspective))
    columns = dict(condition.split("=", maxsplit=1) for condition in options.where)
    hits = index.search(terms, k=options.k, where=Filter(columns, path=options.path))
    for hit in hits:
        print(f"{hit.score:8.3f}  {hit.image_id}")
        if options.why:
            print("\n".join(reasons(hit)))
    if options.picture:
        row = ResultRow("search", options.query or "like the example", range(len(hits)), ())
        result_grid([row], [index.image(hit.image_id) for hit in hits]).save(options.picture)


def check(options: argparse.Namespace) -> None:
    """Read all of an index, and print that it is as it was written."""
    print(f"{options.index}: {verify_index(options.index)} files, all as they were written.")


def reasons(hit: Hit) -> list[str]:
    """A line for each term: what it added, and by which branches."""
    lines = []
    for part in hit.parts:
        branches = ", ".join(f"{name} {value:+.3f}" for name, value in part.by_branch.items())
        against = "not " if part.term.weight < 0 else ""
        lines.append(f"{part.score:+15.3f}  {against}{part.term} ({branches})")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    indexing = verbs.add_parser("index", help="make an index, or bring it up to date")
    indexing.add_argument("images", help="a folder of images, a corpus directory, or `emoji`")
    indexing.add_argument("--model", required=True, help="a checkpoint's directory, or its name on the Hub")
    indexing.add_argument("--index", type=Path, required=True, help="the directory of the index")
    indexing.add_argument("--vectors", choices=VECTORS, default=VECTORS[0], help="`fused`: smaller, no perspectives")
    indexing.add_argument("--lookup", choices=LOOKUPS, default=LOOKUPS[0], help="auto: exact up to a million images")
    indexing.add_argument("--columns", nargs="*", default=[], help="of a corpus, to filter by")
    indexing.add_argument("--batch-size", type=int, default=64, help="images that are encoded together")
    indexing.set_defaults(run=make_index)
    finding = verbs.add_parser("find", help="ask an index")
    finding.add_argument("query", nargs="?", default="", help="what is sought; see above")
    finding.add_argument("--index", type=Path, required=True, help="the directory of the index")
    finding.add_argument("--model", default=None, help="default: where the one lay that made the index")
    finding.add_argument("--like", type=Path, default=None, help="an image like which others are sought")
    finding.add_argument("--perspective", default=FUSED, help="what they should be alike in; default: all branches")
    finding.add_argument("-k", type=int, default=10, help="how many images to show")
    finding.add_argument("--path", default=None, help="only images whose path matches this pattern: `2024/*`")
    finding.add_argument("--where", nargs="*", default=[], metavar="COLUMN=VALUE", help="only images of these values")
    finding.add_argument("--why", action="store_true", help="what each term and branch added to the score")
    finding.add_argument("--picture", type=Path, default=None, help="also draw what is found into this PNG")
    finding.set_defaults(run=find)
    checking = verbs.add_parser("check", help="read all of an index, whether it is as it was written")
    checking.add_argument("--index", type=Path, required=True, help="the directory of the index")
    checking.set_defaults(run=check)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
