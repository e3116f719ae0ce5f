# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Build a corpus: images, each with its captions by perspective, split into train, validation and test.

  holistic-clip corpus folder photos --output corpora/photos
  holistic-clip corpus folder photos --output corpora/photos --caption alt=web --rows captions/photos
  holistic-clip corpus list list.csv --image-column path --caption title=short --output corpora/listed
  holistic-clip corpus official cc3m.jsonl --root cc3m --positions web detail short --output corpora/cc3m
  holistic-clip corpus tar cc3m/*.tar --caption txt=web --output corpora/cc3m
  holistic-clip corpus dataset me/birds --caption caption=short --output corpora/birds

On a cluster, each of n processes gets its own --shard, from 0/n on, and all get the same --output. Then the same
command without --shard adds what is missing, the card and corpus.json.

A killed build goes on when the same command is given again. What is left out is counted at the end, and listed with
its reason in corpus.json or skipped.jsonl. README.md in the corpus is its card.
"""

import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import UseAppendAction

from ..images.limits import ImageLimits
from .sources import AnySource

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..captioning.store import CaptionStore
    from ..corpus.card import CorpusFacts
    from ..corpus.diversity import Embed
    from ..corpus.from_sources import Added, SimilarCaptions
    from ..corpus.plan import BuildSettings
    from ..images.sources import Skipped, Source
    from ..sharding import Shard

MOST_REASONS = 20  # that are printed
AFTER_SHARES = "When all shards are done, run the same command without --shard."


@dataclass(frozen=True)
class BuildOptions:
    """Options of every build.

    Args:
        rows: Folder of caption rows to add, as `holistic-clip caption` writes them.
        perspectives: Perspectives to keep, in this order. Default: all.
        max_caption_bytes: Longest caption in UTF-8; longer ones are left out.
        drop_similar: Similarity to an earlier caption of the image, such as 0.9, from which a caption is dropped.
        embed: sentence-transformers model that measures similarity. Default: shared words.
        validation: Share of the images for validation, drawn by a hash of their ids.
        test: Share of the images for testing, drawn likewise.
        near_duplicates: Treatment of images that are one picture, in another size, compressed anew or mirrored:
            `group` puts them into one split, `report` counts and lists them, `ignore` does not look.
        report: Put the diversity report on the card.
        replace: Replace a corpus of other sources in --output, too. One of the same sources needs no leave.
        rows_per_shard: Largest number of rows of a shard.
        workers: Number of threads that decode images. Default: one for each processor.
        limits: Limits on images.
    """

    rows: UseAppendAction[tuple[Path, ...]] = ()
    perspectives: tuple[str, ...] = ()
    max_caption_bytes: int = 10_000
    drop_similar: float | None = None
    embed: str | None = None
    validation: float = 0.05
    test: float = 0.05
    near_duplicates: Literal["group", "report", "ignore"] = "report"
    report: bool = True
    replace: bool = False
    rows_per_shard: int = 5_000
    workers: int | None = None
    limits: ImageLimits = field(default_factory=ImageLimits)

    def build(self, source: "Source", directory: Path, facts: "CorpusFacts") -> None:
        """Build the corpus of a source and of the caption rows.

        Raises:
            ValueError: no such folder of rows, or as `build_from_sources` does.
        """
        from ..corpus.from_sources import build_from_sources

        source, embed = self._joined(source), self._embed()
        build_from_sources(
            directory,
            [source],
            self._settings(),
            facts=facts,
            similar=self._similar(embed),
            diversity=self.report,
            embed=embed,
            workers=self.workers,
            progress=True,
            replace=self.replace,
        )

    def build_share(self, source: "Source", directory: Path, shard: "Shard") -> None:
        """Write one share of the files of the corpus, and print how many of all these are.

        Raises:
            ValueError: no such folder of rows, or as `build_share` does.
        """
        from ..corpus.from_sources import build_share

        source, embed = self._joined(source), self._embed()
        count, total = build_share(
            directory,
            [source],
            self._settings(),
            shard=shard,
            similar=self._similar(embed),
            workers=self.workers,
            progress=True,
            replace=self.replace,
        )
        print(f"{count:,} of {total:,} files of {directory} are written. {AFTER_SHARES}")

    def _joined(self, source: "Source") -> "Source":
        from ..captioning.store import CaptionStore
        from ..corpus.from_sources import JoinedSource

        known: dict[str, list[str]] = {}  # captioners of one name may have rows in several folders
        for folder in self.rows:
            store = CaptionStore(folder)
            if not folder.is_dir() or next(store.rows(), None) is None:
                raise ValueError(
                    f"`--rows` is {folder}; expected a folder of caption rows, as `holistic-clip caption` writes "
                    "them. Correct the path."
                )
            source = JoinedSource(source, partial(_usable_captions, store, known), folders=[folder])
        return source

    def _embed(self) -> "Embed | None":
        from ..corpus.diversity import sentence_embedder

        return sentence_embedder(self.embed) if self.embed else None

    def _settings(self) -> "BuildSettings":
        from ..corpus.plan import BuildSettings

        return BuildSettings(
            perspectives=self.perspectives,
            validation=self.validation,
            test=self.test,
            max_caption_bytes=self.max_caption_bytes,
            limits=self.limits,
            rows_per_shard=self.rows_per_shard,
            near_duplicates=self.near_duplicates,
        )

    def _similar(self, embed: Any) -> "SimilarCaptions | None":
        from ..corpus.diversity import embedding_similarity, word_similarity
        from ..corpus.from_sources import SimilarCaptions

        if self.drop_similar is None:
            return None
        compare = embedding_similarity(embed) if embed else word_similarity
        return SimilarCaptions(self.drop_similar, compare, self.embed or "words")


@dataclass(frozen=True)
class CardOptions:
    """Facts that only you know of your images.

    Args:
        title: Title of the card. Default: the name of the output folder.
        description: Paragraph on what the images are, and who or what wrote the captions.
        license: Licence as the Hub spells it, such as cc-by-4.0.
        language: Languages of the captions, such as en.
    """

    title: str = ""
    description: str = ""
    license: str = ""
    language: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """Build a corpus of images and captions.

    Args:
        source: Images and their captions.
        output: Folder of the corpus. One of the same sources in it is brought up to date; see --replace.
        shard: Share of the files for this process, as i/n, counted from 0.
        options: Options of the build.
        card: Facts for the card.
    """

    source: AnySource
    output: Path
    shard: str = "0/1"
    options: BuildOptions = field(default_factory=BuildOptions)
    card: CardOptions = field(default_factory=CardOptions)

    def __call__(self) -> None:
        """Build the corpus unless it is whole, or a share of it, and print its counts and path.

        Raises:
            ValueError: as `build_from_sources` does.
        """
        from ..corpus.card import CorpusFacts
        from ..evaluation.records import CONSOLE_SCRIPT, shareable_command
        from ..sharding import ALL, Shard

        if (shard := Shard.parse(self.shard)) != ALL:
            self.options.build_share(self.source.open(), self.output, shard)
            return
        facts = CorpusFacts(
            title=self.card.title or self.output.resolve().name,
            description=self.card.description,
            license=self.card.license,
            languages=self.card.language,
            command=shareable_command([CONSOLE_SCRIPT, *sys.argv[1:]]),
        )
        self.options.build(self.source.open(), self.output, facts)
        show(self.output)


def _usable_captions(store: "CaptionStore", known: dict[str, list[str]]) -> "Iterable[Added | Skipped]":
    from ..corpus.from_sources import captions_of_rows

    return captions_of_rows(store.rows(), known)


def show(directory: Path) -> None:
    """Print the counts of a corpus, and what was left out of it."""
    from ..corpus.build import read_manifest

    manifest = read_manifest(directory)
    for name, shard in manifest["shards"].items():
        skipped = shard.get("num_skipped", len(shard.get("skipped", ())))
        print(f"{name:24} {shard['rows']:9,} rows, {skipped:7,} skipped")
    print(f"{'all':24} {manifest['rows']:9,} rows")
    print(json.dumps({"perspectives": manifest["perspectives"], **manifest["columns"]}, indent=2))
    show_left_out(directory, manifest)
    print(directory)


def show_left_out(directory: Path, manifest: dict[str, Any]) -> None:
    """Print what was left out of a corpus, by reason, and where it is listed."""
    from ..corpus.build import MANIFEST

    if reasons := manifest.get("reasons"):
        print(f"left out, listed in {directory / manifest.get('skipped_file', MANIFEST)}:")
        for reason, count in list(reasons.items())[:MOST_REASONS]:
            print(f"{count:9,} {reason}")
        if len(reasons) > MOST_REASONS:
            print(f"{sum(list(reasons.values())[MOST_REASONS:]):9,} {len(reasons) - MOST_REASONS} other reasons")
