"""Damaged corpora and indexes: each field of a manifest, the bytes of parquet and arrow, integers in their columns."""

import json
import shutil
import struct
from functools import partial
from pathlib import Path
from typing import Any

from _child import Place, command, run
from _frame import FINISHED, REFUSED, SECONDS, Campaign, Draw, Outcome, changed, judge, surroundings
from _nonsense import flip, nonsense
from _verbs import (
    SPLIT,
    list_words,
    make_checkpoints,
    make_corpus,
    make_index,
    make_photos,
    rows_of_corpus,
    rows_of_index,
)
from kills import differences

Words = list[Any]


def damage(path: Path, draw: Draw) -> str:
    """Damage a file in place, and say what was done."""
    data = path.read_bytes()
    if path.suffix == ".json":
        data, told = nonsense(data, draw)
    else:
        data, told = damage_binary(data, draw)
    path.write_bytes(data)
    return f"{path.name}: {told}"


def damage_binary(data: bytes, draw: Draw) -> tuple[bytes, str]:
    """Change integers, flip bits or cut, so that the length often stays."""
    kind, size = (
        draw.choice(["integer", "integer", "integer", "flip", "cut", "zeros", "empty", "gone half"]),
        len(data),
    )
    if kind == "integer":  # arrow aligns its buffers to 8 bytes, and offsets are of 4
        start = 4 * draw.randrange(size // 4)
        value = draw.choice([-1, 0, 1, 2**31 - 1, -(2**31), 1_000_000, 77])
        return data[:start] + struct.pack("<i", value) + data[start + 4 :], f"{value} at byte {start}"
    if kind == "flip":
        return flip(data, draw), kind
    if kind == "zeros":
        start = draw.randrange(size)
        return data[:start] + bytes(min(32, size - start)) + data[start + 32 :], f"zeros at byte {start}"
    return {"cut": data[: draw.randrange(size)], "empty": b"", "gone half": data[size // 2 :]}[kind], kind


def verbs_on_corpus(shared: Path, place: Place) -> dict[str, Words]:
    corpus, model = place.given / "corpus", shared / "model"
    at: Words = ["--model", model, "--corpus", corpus, "--split", "train", "--output", place.out / "results.json"]
    return {
        "evaluate": ["evaluate", *at],
        "evaluate branches": ["evaluate", *at, "--tasks", "branches"],
        "search index": ["search", "index", corpus, "--model", model, "--index", place.out / "index"],
        "publish": ["publish", corpus, "me/mine", "--dry-run"],
        "corpus": ["corpus", *list_words(shared), "--output", corpus, *SPLIT],
    }


def verbs_on_index(shared: Path, place: Place) -> dict[str, Words]:
    index, model = place.given / "index", shared / "model"
    find: Words = ["--index", index, "--model", model, "-k", "30"]
    return {
        "search find": ["search", "find", "short: a drawing; colour: all red", *find],
        "search find --why": ["search", "find", "--like", shared / "photos" / "03.png", *find, "--why"],
        "search check": ["search", "check", "--index", index],
        "search index": ["search", "index", shared / "photos", "--model", model, "--index", index],
    }


def attempt(shared: Path, place: Place, draw: Draw) -> Outcome:
    """Damage a file of a corpus or an index, then read it, or make it anew."""
    kind = draw.choice(["corpus", "index"])
    folder = place.given / kind
    shutil.copytree(shared / kind, folder)
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".parquet", ".arrow", ".faiss"))
    manifests = [path for path in files if path.suffix == ".json"]
    path = draw.choice(manifests if draw.random() < 0.6 else files)
    told = damage(path, draw)
    verbs = (verbs_on_corpus if kind == "corpus" else verbs_on_index)(shared, place)
    verb = draw.choice(sorted(verbs))
    is_making = verb == "corpus" or (kind == "index" and verb == "search index")
    unchanging = partial(outside, place, kind if is_making else "")
    before, work = unchanging(), command(*verbs[verb])

    def wrong() -> str:
        return changed(before, unchanging()) or (made(shared, place, kind) if is_making else "")

    outcome = judge(run(work, place, SECONDS, programs=["python"]), f"{verb}: {told}", wrong=wrong)
    if is_making and outcome.kind == REFUSED:
        # What cannot be mended in place is named, so that it can be deleted; then it is made anew.
        shutil.rmtree(folder)
        again = judge(run(work, place, SECONDS), outcome.about, wrong=lambda: made(shared, place, kind))
        return again if again.kind != FINISHED else outcome
    return outcome


def outside(place: Place, made: str) -> dict[str, str]:
    """Return the snapshot of what may not change: all but what is made."""
    found = surroundings(place)
    return {name: value for name, value in found.items() if not made or not name.startswith(f"given/{made}/")}


def made(shared: Path, place: Place, kind: str) -> str:
    """Say in what a corpus or index that was made anew differs from the undamaged one.

    A changed integer in a segment is found by `search check`, which reads all of it, and not by each indexing.
    """
    rows = rows_of_corpus if kind == "corpus" else rows_of_index
    try:
        found = rows(place.given / kind)
        if isinstance(found, str):  # a shard of the right length, of which `load_corpus` says what to do
            return ""
    except (ValueError, LookupError, TypeError) as error:
        return "" if "changed since it was written" in str(error) else f"it cannot be opened: {error}"
    return next(differences(*json.loads(json.dumps([found, rows(shared / kind)]))), "")


def prepare(shared: Path) -> None:
    make_photos(shared)
    make_checkpoints(shared)
    make_corpus(shared)
    make_index(shared)


CAMPAIGN = Campaign(
    name="manifests",
    about="corpus.json or index.json with a field changed, removed or of another type, and integers, bits and lengths "
    "changed in parquet and arrow files; then evaluate, find, check, publish (dry), or corpus and index made anew",
    tries=450,
    attempt=attempt,
    prepare=prepare,
)
