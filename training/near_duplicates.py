"""Tell how many images of a corpus have a near-duplicate in another domain, before any is held out.

    python -m training.near_duplicates emoji --column artist

With `drop_near_duplicates: true`, a recipe leaves the near-duplicates of what it tests out of training and validation.
"""

from collections import Counter
from dataclasses import dataclass

import tyro
from tyro.conf import Positional

from holistic_clip_hf.cli.main import end_in_a_sentence
from holistic_clip_hf.corpus.build import find_corpus, read_manifest
from holistic_clip_hf.corpus.near_duplicates import NearDuplicates, find_near_duplicates, sides_of
from holistic_clip_hf.words import markdown_table


def table_of_leaks(found: NearDuplicates, sizes: Counter[str]) -> str:
    """Return a Markdown table of domains, with the images that have a near-duplicate in another, and in which.

    Args:
        found: Near-duplicates, each with its domain as its side.
        sizes: Number of images by domain.
    """
    elsewhere: Counter[str] = Counter()
    for group in found.groups:
        inside = Counter(found.sides[image_id] for image_id in group)
        elsewhere.update(inside if len(inside) > 1 else {})
    leaks, rows = found.leaks(), []
    for domain, size in sorted(sizes.items()):
        most = sorted(((-count, there) for (here, there), count in leaks.items() if here == domain))[:3]
        told = ", ".join(f"{there} {-count:,}" for count, there in most)
        rows.append((domain, f"{size:,}", f"{elsewhere[domain]:,}", f"{100 * elsewhere[domain] / size:.1f} %", told))
    return markdown_table(("held out", "images", "with a near-duplicate elsewhere", "share", "most of them in"), rows)


@dataclass(frozen=True)
class Leaks:
    """Count near-duplicates between domains.

    Args:
        corpus: Folder of a corpus, or the name of one in the cache, such as emoji.
        column: Column of the domains that are held out in turn.
    """

    corpus: Positional[str]
    column: str = "artist"

    def __call__(self) -> None:
        """Find near-duplicates unless they are known, and print the table.

        Raises:
            ValueError: no such corpus or column.
        """
        directory = find_corpus(self.corpus)
        manifest, found = read_manifest(directory), find_near_duplicates(directory, progress=True)
        sides = sides_of(directory, manifest, self.column)
        alike, groups = len(found.image_ids), len(found.groups)
        print(f"{alike:,} of {len(sides):,} images have a near-duplicate, in {groups:,} groups.")
        print(table_of_leaks(found.among(sides), Counter(sides.values())))


if __name__ == "__main__":
    with end_in_a_sentence("python -m training.near_duplicates"):
        tyro.cli(Leaks, prog="python -m training.near_duplicates", description=__doc__)()
