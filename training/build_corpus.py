"""Build a corpus: images, each with its captions by perspective, split into train, validation and test.

The corpus of the quickstart, emoji by ten artists, into the user's cache:

    python -m training.build_corpus emoji

Your own images; `python -m training.build_corpus folder --help` tells what every option does:

    python -m training.build_corpus folder photos --output corpora/photos
    python -m training.build_corpus folder photos --output corpora/photos --caption alt=web --rows captions/photos
    python -m training.build_corpus official cc3m.jsonl --root cc3m --positions web detail short --output corpora/cc3m
    python -m training.build_corpus tar cc3m/*.tar --caption txt=web --output corpora/cc3m
    python -m training.build_corpus dataset me/birds --caption caption=short --output corpora/birds

And three of Debian packages: tuxpaint, openclipart, fashion_mnist.

A killed build goes on where it was when the command is given again. What is left out is counted at the end, and listed
with its reason in corpus.json or skipped.jsonl; README.md in the corpus is its card.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from holistic_clip_hf.captioning.similarity import embedding_similarity, sentence_embedder, word_similarity
from holistic_clip_hf.captioning.store import CaptionStore
from holistic_clip_hf.corpus.build import MANIFEST, read_manifest
from holistic_clip_hf.corpus.card import CorpusFacts
from holistic_clip_hf.corpus.from_sources import SimilarCaptions, build_from_sources
from holistic_clip_hf.corpus.images import ImageLimits
from holistic_clip_hf.corpus.joining import JoinedSource, captions_of_rows
from holistic_clip_hf.corpus.plan import BuildSettings
from holistic_clip_hf.corpus.source import Source
from training.corpora.debian.corpora import CORPORA, open_debian
from training.corpora.emoji.build import build_emoji_corpus
from training.corpora.emoji.packages import cache_root
from training.corpora.sources import add_sources

MOST_REASONS = 20  # that are printed
CACHE_HELP = "default: $HOLISTIC_CLIP_CACHE or the user's cache"


def common_options() -> argparse.ArgumentParser:
    """What every source takes."""
    defaults, limits = BuildSettings(), ImageLimits()
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--output", type=Path, help="the folder of the corpus")
    captions = parser.add_argument_group("captions")
    captions.add_argument("--rows", type=Path, action="append", default=[], help="add caption rows: a folder of them")
    captions.add_argument("--perspectives", nargs="+", default=[], help="keep these only, in this order; default: all")
    captions.add_argument(
        "--max-caption-bytes", type=int, default=defaults.max_caption_bytes, help="leave longer ones out; %(default)s"
    )
    captions.add_argument(
        "--drop-similar",
        type=float,
        metavar="THRESHOLD",
        help="drop what is so similar to an earlier caption: 0.9, say",
    )
    captions.add_argument("--embed", metavar="MODEL", help="a sentence-transformers model to measure similarity with")
    images = parser.add_argument_group("images")
    for name, value in vars(limits).items():
        images.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help="%(default)s")
    splits = parser.add_argument_group("splits, by a hash of the image id")
    splits.add_argument("--validation", type=float, default=defaults.validation, help="share; %(default)s")
    splits.add_argument("--test", type=float, default=defaults.test, help="share; %(default)s")
    parser.add_argument("--no-report", action="store_true", help="a card without the diversity report")
    parser.add_argument("--rows-per-shard", type=int, default=defaults.rows_per_shard, help="%(default)s")
    parser.add_argument("--workers", type=int, help="threads that decode images; default: one for each processor")
    return parser


def card_options() -> argparse.ArgumentParser:
    """What only the user knows of their own images."""
    parser = argparse.ArgumentParser(add_help=False)
    card = parser.add_argument_group("card")
    card.add_argument("--title", default="", help="default: the name of the output folder")
    card.add_argument("--description", default="", help="what the images are, and who or what wrote the captions")
    card.add_argument("--license", default="", help="as the Hub spells it: cc-by-4.0")
    card.add_argument("--language", nargs="+", default=[], help="of the captions: en")
    return parser


def make_parser() -> argparse.ArgumentParser:
    """A command for each kind of source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="SOURCE")
    emoji = commands.add_parser("emoji", help="the corpus of the quickstart")
    emoji.add_argument("--cache-dir", type=Path, help=CACHE_HELP)
    emoji.add_argument("--image-size", type=int, default=96, help="side of the square drawings, in pixels")
    emoji.set_defaults(run=build_emoji)
    for own in add_sources(commands, lambda: [common_options(), card_options()]):
        own.set_defaults(run=build_source)
    for name, corpus in CORPORA.items():
        debian = commands.add_parser(name, help=f"of Debian: {', '.join(corpus.packages)}", parents=[common_options()])
        debian.add_argument("--cache-dir", type=Path, help=CACHE_HELP)
        # Whoever trains on a part of its test split can compare with nobody.
        debian.set_defaults(run=build_debian, corpus=name, **({"test": 0.0} if name == "fashion_mnist" else {}))
    return parser


def build_emoji(options: argparse.Namespace) -> Path:
    """The corpus of the quickstart."""
    return build_emoji_corpus(options.cache_dir, image_size=options.image_size)


def build_debian(options: argparse.Namespace) -> Path:
    """A corpus of packages, by default beside the emoji."""
    cache = options.cache_dir or cache_root()
    source, facts = open_debian(options.corpus, cache)
    return build(options, source, facts, options.output or cache / "corpora" / options.corpus)


def build_source(options: argparse.Namespace) -> Path:
    """A corpus of the user's own images."""
    if options.output is None:
        raise ValueError("Got no --output; expected the folder that the corpus is to be in.")
    source = options.open_source(options)
    command = f"python -m training.build_corpus {' '.join(sys.argv[1:])}"
    facts = CorpusFacts(
        options.title or options.output.name, options.description, options.license, tuple(options.language), command
    )
    return build(options, source, facts, options.output)


def build(options: argparse.Namespace, source: Source, facts: CorpusFacts, directory: Path) -> Path:
    """What the options say, from a source and from caption rows."""
    for folder in options.rows:
        if not folder.is_dir():
            raise ValueError(f"Got --rows {folder}, which is no folder; expected caption rows. Correct the path.")
        store = CaptionStore(folder)
        source = JoinedSource(source, lambda store=store: captions_of_rows(store.rows()))
    embed = sentence_embedder(options.embed) if options.embed else None
    similar = None
    if options.drop_similar is not None:
        compare = embedding_similarity(embed) if embed else word_similarity
        similar = SimilarCaptions(options.drop_similar, compare, options.embed or "words")
    settings = BuildSettings(
        perspectives=tuple(options.perspectives),
        validation=options.validation,
        test=options.test,
        max_caption_bytes=options.max_caption_bytes,
        limits=ImageLimits(**{name: getattr(options, name) for name in vars(ImageLimits())}),
        rows_per_shard=options.rows_per_shard,
    )
    report = {"diversity": not options.no_report, "embed": embed}
    chosen = {"facts": facts, "similar": similar, "workers": options.workers, "progress": True}
    build_from_sources(directory, [source], settings, **chosen, **report)
    return directory


def main() -> None:
    """Build it unless it is whole, and print its counts and path."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("--cache-dir", "--image-size"):
        arguments = ["emoji", *arguments]
    options = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    directory = options.run(options)
    manifest = read_manifest(directory)
    for name, shard in manifest["shards"].items():
        skipped = shard.get("num_skipped", len(shard.get("skipped", ())))
        print(f"{name:24} {shard['rows']:9,} rows, {skipped:7,} skipped")
    print(f"{'all':24} {manifest['rows']:9,} rows")
    print(json.dumps({"perspectives": manifest["perspectives"], **manifest["columns"]}, indent=2))
    if reasons := manifest.get("reasons"):
        print(f"left out, listed in {directory / manifest.get('skipped_file', MANIFEST)}:")
        for reason, count in list(reasons.items())[:MOST_REASONS]:
            print(f"{count:9,} {reason}")
        if len(reasons) > MOST_REASONS:
            print(f"{sum(list(reasons.values())[MOST_REASONS:]):9,} {len(reasons) - MOST_REASONS} other reasons")
    print(directory)


if __name__ == "__main__":
    main()
