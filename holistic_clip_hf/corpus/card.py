# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The data set card of a corpus built from sources: counts, rules and the diversity report, from what was built."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

from ..images.sources import SPLITS, Source, origins_of
from ..storage import stable_number, write_atomically, write_json
from ..words import markdown_table
from .build import MANIFEST, NEAR_DUPLICATES, SKIPPED, DamagedCorpusError, digest_of, is_whole, read_manifest
from .diversity import DiversityReport, Embed, measure_diversity
from .diversity_picture import draw_diversity
from .near_duplicates import NearDuplicates
from .plan import BuildSettings

PICTURE, REPORT = "diversity.png", "diversity.json"
_TAGS = ["holistic-clip", "image-text-pairs"]
_TASKS = ["zero-shot-image-classification", "image-to-text"]
_ROWS_AT_ONCE = 1_000
_MOST_REASONS = 20


@dataclass(frozen=True)
class CorpusFacts:
    """Facts for the card that the build does not know.

    Args:
        title: Title of the card.
        description: a paragraph: what the images are and where they are from, who or what wrote the captions.
        license: Licence of images and captions, as the Hub spells it (`cc-by-4.0`).
        languages: Languages of the captions (`en`).
        command: Command that builds the corpus again.
        name: Name of the corpus in records. Default: that of its folder.
    """

    title: str
    description: str = ""
    license: str = ""
    languages: tuple[str, ...] = ()
    command: str = ""
    name: str = ""

    def about(self, sources: Sequence[Source], settings: BuildSettings, similar: str) -> dict[str, Any]:
        """Return these facts for the manifest, with what the corpus was built from and how."""
        built = {"sources": [source.name for source in sources], "settings": asdict(settings), "similar": similar}
        return {**asdict(self), **built, "origins": hashed_origins(sources)}


def hashed_origins(sources: Sequence[Source]) -> dict[str, str]:
    """Return the names of what sources read, by hashes: a corpus is published, and paths are nobody's business."""
    known = [each for source in sources for each in origins_of(source)]
    return {f"{stable_number(each):016x}": PurePath(each).name or each for each in known}


def require_same_origins(directory: Path, fingerprint: str, sources: Sequence[Source]) -> None:
    """Refuse to replace a corpus by one that lacks something that it was built from. More may be added.

    Args:
        directory: Folder of the corpus; it need not exist.
        fingerprint: Fingerprint of the new corpus.
        sources: Sources of the new corpus.

    Raises:
        ValueError: the corpus has images or captions from elsewhere.
    """
    if not (directory / MANIFEST).is_file() or is_whole(directory, fingerprint):
        return
    try:
        about = read_manifest(directory).get("about") or {}
    except DamagedCorpusError as error:
        digest = digest_of(fingerprint)
        names = [path.stem for path in (directory / "data").glob("*.parquet")]
        if names and not any(name.endswith(digest) for name in names):
            raise ValueError(
                f"`output` is {directory}, whose {MANIFEST} is damaged, so that it does not say what it was built "
                "from; expected the sources as they were. Name another folder, or give `replace`."
            ) from error
        return
    if "origins" in about:
        lost = [name for key, name in about["origins"].items() if key not in hashed_origins(sources)]
    else:  # of before origins were kept
        lost = [name for name in about.get("sources", ["unknown sources"]) if name not in [s.name for s in sources]]
    if lost:
        raise ValueError(
            f"`output` is {directory}, which holds a corpus built from {', '.join(lost)}; expected one of the same "
            "sources, to which you may add. Name another folder, or give `replace`."
        )


def write_card(
    directory: Path,
    manifest: Mapping[str, Any],
    facts: CorpusFacts,
    *,
    diversity: bool,
    embed: Embed | None,
    alike: NearDuplicates | None = None,
) -> str:
    """Return the card of the built shards; with `diversity`, its picture and all its numbers are put beside it.

    `alike` are the near-duplicates, None if they were not looked for.

    Raises:
        ImportError: the diversity report needs packages that are not installed.
    """
    report = None
    if diversity:
        report = measure_diversity(_captions(directory, manifest), embed=embed)
        picture = io.BytesIO()
        draw_diversity(report).savefig(picture, format="png")
        with write_atomically(directory / PICTURE) as file:
            file.write(picture.getvalue())
        write_json(directory / REPORT, report.to_dict(), indent=1)
    example = next(iter(_captions(directory, manifest)))[1]
    return render_card(manifest, facts, report, example, alike)


def render_card(
    manifest: Mapping[str, Any],
    facts: CorpusFacts,
    report: DiversityReport | None,
    example: Sequence[Mapping[str, str]],
    alike: NearDuplicates | None = None,
) -> str:
    """Return Markdown with the front matter by which the Hub and `load_dataset` find the splits."""
    settings = manifest["about"]["settings"]
    sections = [
        f"---\n{_front_matter(manifest, facts)}\n---",
        f"# {facts.title}",
        facts.description,
        f"{manifest['rows']:,} images with {sum(manifest['perspectives'].values()):,} captions from "
        f"{len(manifest['perspectives'])} perspective{'s' * (len(manifest['perspectives']) > 1)}. A row has "
        "`image_id`, `image`, `captions`, a list of "
        "`perspective`, `text` and `source`, and `split`.",
        '```python\nfrom datasets import load_dataset\n\ncorpus = load_dataset("<this repository or folder>")\n```',
        "## Perspectives",
        markdown_table(("perspective", "captions", "captions of one image"), _perspectives(manifest, example)),
        "## Splits",
        _splits(manifest, settings),
        "## Near-duplicates",
        _near_duplicates(alike),
        *_diversity(report),
        "## Images",
        _images(settings["limits"]),
        "## Left out",
        _left_out(manifest),
    ]
    if facts.command:
        sections += ["## Rebuild", f"```bash\n{facts.command}\n```"]
    return "\n\n".join(section for section in sections if section) + "\n"


def _captions(directory: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    for record in manifest["shards"].values():
        with pq.ParquetFile(directory / record["file"]) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=["image_id", "captions"]):
                yield from ((row["image_id"], row["captions"]) for row in batch.to_pylist())


def _front_matter(manifest: Mapping[str, Any], facts: CorpusFacts) -> str:
    files = [
        {"split": split, "path": f"data/{split}-*"} for split in SPLITS if manifest["columns"]["split"].get(split)
    ]
    data = DatasetCardData(
        pretty_name=facts.title,
        license=facts.license or None,
        language=list(facts.languages) or None,
        task_categories=_TASKS,
        tags=_TAGS,
        configs=[{"config_name": "default", "data_files": files}],
    )
    return data.to_yaml()


def _perspectives(manifest: Mapping[str, Any], example: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, str, str]]:
    for name, count in manifest["perspectives"].items():
        texts = [caption["text"] for caption in example if caption["perspective"] == name]
        yield name, f"{count:,}", " / ".join(texts)


def _splits(manifest: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    counts = manifest["columns"]["split"]
    return (
        f"{', '.join(f'{counts[split]:,} {split}' for split in SPLITS if split in counts)}. Where a source does not "
        f"say otherwise, a hash of the image id decides, with a share of {settings['validation']:g} for validation "
        f"and {settings['test']:g} for test: an image stays in its split when others are added."
    )


def _near_duplicates(alike: NearDuplicates | None) -> str:
    if alike is None:
        return "They were not looked for."
    if not alike.groups:
        return "No two images are one picture in another size, compressed anew or mirrored."
    told = (
        f"{len(alike.image_ids):,} images are one picture with others, in another size, compressed anew or mirrored: "
        f"{len(alike.groups):,} groups of up to {max(map(len, alike.groups)):,}, each listed in `{NEAR_DUPLICATES}`."
    )
    leaks = alike.leaks()
    if not leaks:
        return f"{told} No group lies in two splits."
    rows = [(split, other, f"{count:,}") for (split, other), count in leaks.items()]
    table = markdown_table(("images of", "with a near-duplicate in", "number"), rows)
    return f"{told} Some groups lie in several splits.\n\n{table}"


def _diversity(report: DiversityReport | None) -> list[str]:
    if report is None:
        return []
    picture = f"![Lengths, distinct words, and similarity between perspectives]({PICTURE})"
    return ["## Diversity of the captions", report.table(), picture, f"All numbers are in `{REPORT}`."]


def _images(limits: Mapping[str, int]) -> str:
    shape = f", no side over {limits['max_ratio']:,} times the other" if "max_ratio" in limits else ""
    return (
        f"Every image was decoded. Sides have {limits['min_side']:,} to {limits['max_side']:,} pixels, at most "
        f"{limits['max_pixels']:,} in all{shape}. Files are as they came, transparency included, except that "
        "photographs were turned upright as their camera noted, of animations only the first picture is there, and "
        "colours of print (CMYK) became RGB."
    )


def _left_out(manifest: Mapping[str, Any]) -> str:
    if not manifest["num_skipped"]:
        return "Nothing."
    listed = SKIPPED if "skipped_file" in manifest else MANIFEST
    reasons = list(manifest["reasons"].items())
    rows = [(reason, f"{count:,}") for reason, count in reasons[:_MOST_REASONS]]
    if rest := reasons[_MOST_REASONS:]:
        rows.append((f"{len(rest):,} other reasons", f"{sum(count for _, count in rest):,}"))
    return f"{markdown_table(('reason', 'images or captions'), rows)}\n\nEach is listed in `{listed}`."
