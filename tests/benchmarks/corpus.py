"""Peak memory of building a corpus of 100,000 rows, held against 10,000: it must not grow with the rows.

    python tests/benchmarks/corpus.py    some minutes on two cores; writes results/corpus.json

Metadata is synthetic: six captions a row of 10 to 60 words, and half as many caption rows again, joined by image id;
the images are 16 pixels square, drawn as they are read. Peaks are of a fresh process each, beyond what the imports
take. Building has all of it, plan, checks, decoding, shards and card, but the diversity report, whose memory is that
of its sample.
"""

import io
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from _measure import MEBIBYTE, arguments, peak_bytes, peak_in_fresh_process, write_record
from PIL import Image

from holistic_clip_hf.captioning.store import CaptionRow
from holistic_clip_hf.corpus.build import read_manifest
from holistic_clip_hf.corpus.card import CorpusFacts
from holistic_clip_hf.corpus.from_sources import JoinedSource, build_from_sources, captions_of_rows
from holistic_clip_hf.images.sources import Item, Skipped

SMALL, LARGE = 10_000, 100_000
PERSPECTIVES = ("web", "detail", "short", "nouns", "background", "style")
ADDED = ("main_object", "relations", "one_sentence")
WORDS = ("dog", "snow", "a", "the", "behind", "wooden", "bright", "table", "stands", "of", "old", "street", "light")
ROWS_PER_SHARD = 5_000


class Synthetic:
    """A source of `count` images of one colour each, with captions drawn from a few words."""

    name = "synthetic"

    def __init__(self, count: int) -> None:
        self.count = count

    def items(self) -> Iterator[Item | Skipped]:
        for number in range(self.count):
            captions = [
                {"perspective": name, "text": text(number, name), "source": "synthetic"} for name in PERSPECTIVES
            ]
            yield Item(f"{number:07}", str(number), "1", captions)

    def read(self, place: str) -> bytes:
        number, file = int(place), io.BytesIO()
        colour = (number % 256, number // 256 % 256, number // 65536)
        Image.new("RGB", (16, 16), colour).save(file, "PNG")
        return file.getvalue()


def text(number: int, perspective: str) -> str:
    draw = random.Random(f"{number} {perspective}")
    return " ".join(draw.choices(WORDS, k=draw.randint(10, 60)))


def rows(count: int) -> Iterator[CaptionRow]:
    for number in range(count):
        for name in ADDED:
            yield CaptionRow(f"{number:07}", name, text(number, name), "captioner", "1", "0", "ok")


def build(count: int, directory: Path) -> None:
    source = JoinedSource(Synthetic(count), lambda: captions_of_rows(rows(count)))
    build_from_sources(directory, [source], facts=CorpusFacts("Synthetic"), diversity=False)
    manifest = read_manifest(directory)
    assert manifest["rows"] == count and sum(manifest["perspectives"].values()) == 9 * count


def main() -> None:
    options = arguments(__doc__, rounds=1)
    if options.memory:
        with tempfile.TemporaryDirectory() as folder:
            sys.stdout.write(f"{peak_bytes(partial(build, int(options.memory), Path(folder)))}\n")
        return
    results = {}
    for count in (SMALL, LARGE):
        start = time.perf_counter()
        peak = peak_in_fresh_process(__file__, str(count))
        results[f"{count}"] = {"peak_mib": round(peak / MEBIBYTE), "seconds": round(time.perf_counter() - start)}
    growth = results[f"{LARGE}"]["peak_mib"] / results[f"{SMALL}"]["peak_mib"]
    shape = {"captions_per_row": len(PERSPECTIVES) + len(ADDED), "rows_per_shard": ROWS_PER_SHARD}
    record = {**shape, "rows": results, "growth_of_peak_for_ten_times_the_rows": round(growth, 2)}
    sys.stdout.write(json.dumps(record, indent=1) + "\n")
    write_record("corpus", record)


if __name__ == "__main__":
    main()
