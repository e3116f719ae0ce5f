# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The data set card of the built corpus, rendered from its manifest."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from holistic_clip_hf.words import markdown_table
from training.emoji.captions import PERSPECTIVES


def render_card(manifest: Mapping[str, Any]) -> str:
    """Return Markdown with the real counts, splits, examples, skips and licences of a built corpus."""
    about, shards = manifest["about"], manifest["shards"]
    sections = [
        "---\nlicense: other\nlicense_name: see-the-licences-of-the-artists\nlanguage: en\n"
        "task_categories:\n- zero-shot-image-classification\n---",
        "# Emoji by many artists",
        f"{manifest['rows']:,} drawings of {about['concepts']:,} concepts by {len(shards)} artists, "
        f"{about['image_size']} pixels square with transparency; each has up to {len(PERSPECTIVES)} captions. "
        "The texts about the concept are the same for all its artists; the palette is measured from each drawing.",
        "## Perspectives",
        _perspectives(manifest),
        "## Splits",
        "`artist_split`: the artist OpenMoji is the test split; of about a quarter of the concepts, one drawing by "
        "another artist is validation; the rest is training. `family_split`: all drawings of a family of concepts "
        "(man, woman and person running; clock faces; hearts by colour) share a split: what is unseen is unseen.",
        _splits(manifest),
        "## Artists, texts and licences",
        _licences(manifest),
        "CC-BY asks for attribution (the table above), CC-BY-SA also that adapted drawings are shared alike. "
        "The drawings were rasterised, trimmed to what is drawn, and centred on a square.",
        "## Left out",
        _left_out(manifest),
        "Every item is listed in `corpus.json`.",
        "## Rebuild",
        "`python -m training.emoji` in a checkout of holistic-clip-hf. Versions and checksums are pinned.",
    ]
    return "\n\n".join(sections) + "\n"


def _perspectives(manifest: Mapping[str, Any]) -> str:
    counts, examples = manifest["perspectives"], manifest["about"]["example"]
    rows = (
        (name, f"{counts.get(name, 0):,}", meaning, examples.get(name, "")) for name, meaning in PERSPECTIVES.items()
    )
    return markdown_table(("perspective", "captions", "what it says", "example"), rows)


def _splits(manifest: Mapping[str, Any]) -> str:
    splits = ("train", "validation", "test")
    rows = (
        (column, *(f"{counts.get(split, 0):,}" for split in splits)) for column, counts in manifest["columns"].items()
    )
    return markdown_table(("column", *splits), rows)


def _licences(manifest: Mapping[str, Any]) -> str:
    shards = manifest["shards"]
    rows = (
        (
            f"[{facts['title']}]({facts['source']})",
            f"{shards[name]['rows']:,}" if name in shards else "texts",
            facts["credit"],
            f"`{facts['package']}@{facts['version']}`",
            f"[{facts['license']}]({facts['license_url']})",
        )
        for name, facts in manifest["about"]["packages"].items()
    )
    return markdown_table(("name", "rows", "by", "package", "licence"), rows)


def _left_out(manifest: Mapping[str, Any]) -> str:
    reasons = Counter(
        (name, skip["reason"].split(":")[0]) for name, shard in manifest["shards"].items() for skip in shard["skipped"]
    )
    rows = ((name, f"{count:,}", reason) for (name, reason), count in sorted(reasons.items()))
    return markdown_table(("artist", "concepts", "reason"), rows)
