"""Build a corpus of what Debian packages hold: tuxpaint, openclipart or fashion_mnist.

    python -m training.debian tuxpaint
    python -m training.debian openclipart --output corpora/clipart --workers 2

The packages are downloaded with apt and unpacked into the cache; nothing is installed.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from holistic_clip_hf.cli.corpus import BuildOptions, show
from holistic_clip_hf.cli.main import end_in_a_sentence


@dataclass(frozen=True)
class Debian:
    """Options of the corpus.

    Args:
        name: Corpus to build.
        output: Folder of the corpus. Default: in the cache, under its name.
        cache_dir: Folder of downloads. Default: $HOLISTIC_CLIP_CACHE, or the user's cache.
        options: Options of every build.
    """

    name: Positional[Literal["tuxpaint", "openclipart", "fashion_mnist"]]
    output: Path | None = None
    cache_dir: Path | None = None
    options: BuildOptions = field(default_factory=BuildOptions)

    def __call__(self) -> None:
        """Build the corpus unless it is whole, and print its counts and path."""
        from holistic_clip_hf.corpus.build import cache_root
        from training.debian.corpora import open_debian

        cache = self.cache_dir or cache_root()
        source, facts = open_debian(self.name, cache)
        options = replace(self.options, test=self.test_share())
        output = self.output or cache / "corpora" / self.name
        options.build(source, output, facts)
        show(output)

    def test_share(self) -> float:
        """Return the share for testing; Fashion-MNIST comes with a test split that others compare on."""
        return 0.0 if self.name == "fashion_mnist" else self.options.test


if __name__ == "__main__":
    with end_in_a_sentence("python -m training.debian"):
        tyro.cli(Debian, prog="python -m training.debian", description=__doc__, config=(OmitArgPrefixes,))()
