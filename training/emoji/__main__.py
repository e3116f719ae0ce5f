"""Build the corpus of the quickstart, emoji by ten artists, into the user's cache.

    python -m training.emoji
    python -m training.emoji --image-size 64 --cache-dir cache

It needs the `quickstart` extra: drawings are rendered here, from packages that npm fetches.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from holistic_clip_hf.cli.corpus import show
from holistic_clip_hf.cli.main import end_in_a_sentence


@dataclass(frozen=True)
class Emoji:
    """Options of the corpus.

    Args:
        cache_dir: Folder of downloads and of the corpus. Default: $HOLISTIC_CLIP_CACHE, or the user's cache.
        image_size: Side of the square drawings, in pixels.
    """

    cache_dir: Path | None = None
    image_size: int = 96

    def __call__(self) -> None:
        """Build the corpus unless it is whole, and print its counts and path."""
        from training.emoji.build import build_emoji_corpus

        show(build_emoji_corpus(self.cache_dir, image_size=self.image_size))


if __name__ == "__main__":
    with end_in_a_sentence("python -m training.emoji"):
        tyro.cli(Emoji, prog="python -m training.emoji", description=__doc__)()
