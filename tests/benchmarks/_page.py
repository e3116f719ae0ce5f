"""Table of docs/performance.md, made of the records beside: `python tests/benchmarks/_page.py`."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
HEAD = "| what | beside | measured | aim |\n|---|---|---:|---:|"
GIGABYTE, TIMES = "{:.2f} GB", "{:.2f} ×"
# What, beside what, record, the way to its number, form, aim.
ROWS: list[tuple[str, str, str, list[str], str, str]] = [
    (
        "images, 6 class tokens",
        "`CLIPModel`",
        "encoding",
        ["cases", "float32, 8", "cls H=6", "ratio to CLIPModel"],
        TIMES,
        "0.92 ×",
    ),
    (
        "images, 6 class tokens",
        "open_clip",
        "encoding",
        ["cases", "float32, 8", "cls H=6", "ratio to open_clip"],
        TIMES,
        "0.92 ×",
    ),
    (
        "images, 6 class tokens with own MLPs",
        "`CLIPModel`",
        "tower",
        ["images", "cls H=6, MLPs of their own", "ratio"],
        TIMES,
        "1.05 ×",
    ),
    ("images, 6-fold MLPs in 3 layers", "`CLIPModel`", "tower", ["images", "mlp H=6", "ratio"], TIMES, "1.60 ×"),
    ("images, 6 probes", "`SiglipVisionModel`", "probes", ["cases", "6 probes", "ratio"], "{:.3f} ×", "1.010 ×"),
    (
        "step on files, 6 captions, class tokens",
        "open_clip, 1 caption",
        "end_to_end",
        ["results", "ours, class tokens", "ratio"],
        TIMES,
        "1.00 ×",
    ),
    (
        "step on files, 6 captions, 6-fold MLPs",
        "open_clip, 1 caption",
        "end_to_end",
        ["results", "ours, MLPs", "ratio"],
        TIMES,
        "",
    ),
    (
        "step on files, transformers, 1 caption",
        "open_clip, 1 caption",
        "end_to_end",
        ["results", "transformers, one caption", "ratio"],
        TIMES,
        "",
    ),
    (
        "step on files, sentence-transformers",
        "open_clip, 1 caption",
        "end_to_end",
        ["results", "sentence-transformers, one caption", "ratio"],
        TIMES,
        "",
    ),
    (
        "steps per second, 6 class tokens",
        "the step written plainly",
        "training_step",
        ["cls", "speed"],
        TIMES,
        "1.60 ×",
    ),
    (
        "steps per second, 6-fold MLPs",
        "the step written plainly",
        "training_step",
        ["mlp", "speed"],
        TIMES,
        "1.50 ×",
    ),
    (
        "steps on cached states, texts frozen",
        "steps on pixels",
        "frozen",
        ["cases", "texts frozen, 1 caption", "faster float32"],
        TIMES,
        "10.00 ×",
    ),
    (
        "loss, 16,384 images of 6 captions",
        "",
        "loss",
        ["gigabytes", "streamed 16384"],
        GIGABYTE,
        "0.90 GB",
    ),
    ("loss, 4,096 images, all logits held", "", "loss", ["gigabytes", "whole 4096"], GIGABYTE, ""),
    ("loss, 4,096 images, streamed", "", "loss", ["gigabytes", "streamed 4096"], GIGABYTE, ""),
    ("memory, gradient cache, batch of 512", "batch of 32", "gradient_cache", ["growth"], TIMES, "1.10 ×"),
    ("page, first answer after it is up", "", "page", ["seconds", "answer"], "{:.2f} s", "2.00 s"),
    (
        "captions per second, image read once",
        "plain `generate`",
        "captioning",
        ["throughput_ratio"],
        TIMES,
        "2.30 ×",
    ),
    (
        "captions per second, mixed lengths",
        "plain `generate`",
        "captioning",
        ["cases", "up to 32 tokens", "ratio"],
        TIMES,
        "",
    ),
]


def number(record: dict[str, Any], way: list[str]) -> float | None:
    """Follow a way into a record, or return nothing if it ends."""
    found: Any = record
    for name in way:
        if not isinstance(found, dict) or name not in found:
            return None
        found = found[name]
    return float(found)


def table(records: Path) -> str:
    """Return the table of what the records of a folder hold; what was not measured is left out."""
    lines, commits = [HEAD], set()
    for what, beside, name, way, form, aim in ROWS:
        path = records / f"{name}.json"
        record = json.loads(path.read_text()) if path.is_file() else {}
        value = number(record, way)
        if value is not None:
            lines.append(f"| {what} | {beside} | {form.format(value)} | {aim} |")
            commits.add(f"[{name}]({link(name)}) at `{record['commit']}`")
    return "\n".join([*lines, "", f"Measured by {', '.join(sorted(commits))}.", *encoding_table(records)])


def encoding_table(records: Path) -> list[str]:
    """Return the lines of the table of six class tokens by precision and batch; none if it was not measured."""
    path = records / "encoding.json"
    if not path.is_file():
        return []
    record = json.loads(path.read_text())
    cases = {case: found["cls H=6"] for case, found in record["cases"].items()}
    peers = list(dict.fromkeys(key for found in cases.values() for key in found if key.startswith("ratio to ")))
    head = " | ".join(peer.removeprefix("ratio to ") for peer in peers)
    lines = [
        f"| six class tokens: precision, batch | {head} | images per second |",
        f"|---|{'---:|' * len(peers)}---:|",
    ]
    for case, found in cases.items():
        ratios = " | ".join(TIMES.format(found[peer]) if peer in found else "" for peer in peers)
        lines.append(f"| {case} | {ratios} | {int(case.split(', ')[1]) / found['seconds']:.2f} |")
    return ["", *lines, "", "The aim was 0.92 × of both."]


def link(name: str) -> str:
    """Return the address of a benchmark from the page."""
    return f"https://github.com/holistic-clip-hf/holistic-clip-hf/blob/main/tests/benchmarks/{name}.py"


def rendered(text: str, records: Path) -> str:
    """Return a page with the table of the records between its marks."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{table(records)}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(), HERE / "results"))
