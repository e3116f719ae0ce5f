"""Build the emoji corpus: `python -m training.build_corpus [--cache-dir DIR] [--image-size 96]`."""

import argparse
import json
import logging
from pathlib import Path

from holistic_clip_hf.corpus.build import read_manifest
from training.corpora.emoji.build import build_emoji_corpus


def main() -> None:
    """Build it unless it is whole, and print its counts and path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cache-dir", type=Path, default=None, help="default: $HOLISTIC_CLIP_CACHE or the user's cache"
    )
    parser.add_argument("--image-size", type=int, default=96, help="side of the square drawings, in pixels")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    directory = build_emoji_corpus(arguments.cache_dir, image_size=arguments.image_size)
    manifest = read_manifest(directory)
    for artist, shard in manifest["shards"].items():
        print(f"{artist:20} {shard['rows']:6,} rows, {len(shard['skipped']):5,} skipped")
    print(f"{'all':20} {manifest['rows']:6,} rows")
    print(json.dumps({"perspectives": manifest["perspectives"], **manifest["columns"]}, indent=2))
    print(directory)


if __name__ == "__main__":
    main()
