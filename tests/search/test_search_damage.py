"""Wrong numbers in an index: each is a sentence that names the file, none a crash, and indexing again mends it."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.search import SearchIndex
from holistic_clip_hf.search.store import open_segment, read_index_manifest, vectors_of
from holistic_clip_hf.storage import checksum
from photo_index import NAMES, Indexing, counts, indexing, rows, write_photos


@pytest.fixture
def model(make_model: Callable[..., HolisticCLIPModel]) -> HolisticCLIPModel:
    return make_model(perspectives=NAMES)


@pytest.fixture
def bring(model: HolisticCLIPModel, processor: HolisticCLIPProcessor, corpus: Dataset, tmp_path: Path) -> Indexing:
    return indexing(write_photos(corpus, tmp_path / "photos"), tmp_path, model, processor)


def test_a_vector_that_is_no_vector_is_refused_and_mended(
    bring: Indexing, model: HolisticCLIPModel, processor: HolisticCLIPProcessor, tmp_path: Path
) -> None:
    directory = tmp_path / "index"
    bring()
    whole = rows(directory)
    for wrong in (np.nan, np.inf, 1e30):
        manifest = read_index_manifest(directory)
        path = directory / manifest.segments[-1].file
        opened = open_segment(path, manifest.layout)
        assert opened is not None
        last = vectors_of(opened[0], NAMES[-1])[-1][-1, -1:].tobytes()
        content = path.read_bytes()
        assert content.count(last) == 1
        path.write_bytes(content.replace(last, np.float32(wrong).tobytes()))
        with pytest.raises(ValueError, match=f"{path.name} is changed since it was written. Run the indexing again"):
            SearchIndex(directory, model, processor)
        before = (directory / "index.json").read_text()
        told = before.replace(hashlib.sha256(content).hexdigest(), checksum(path))  # as if it had been written so
        (directory / "index.json").write_text(told)
        with pytest.raises(
            ValueError, match=f"{path.name} is damaged. Run the indexing again: what it held is encoded"
        ):
            SearchIndex(directory, model, processor)
        (directory / "index.json").write_text(before)
        bring()
        assert rows(directory) == whole


@pytest.mark.parametrize("lookup", ["ivf", "hnsw"])
def test_a_changed_look_up_is_refused_and_mended(
    bring: Indexing, model: HolisticCLIPModel, processor: HolisticCLIPProcessor, tmp_path: Path, lookup: str
) -> None:
    """One bit of a vector within a file of faiss, by which it would propose other neighbours."""
    pytest.importorskip("faiss")
    directory = tmp_path / "index"
    bring(lookup=lookup)
    expected = [hit.image_id for hit in SearchIndex(directory, model, processor).search("a red square", k=8)]
    path = directory / read_index_manifest(directory).neighbours[NAMES[0]].file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name} is changed since it was written. Run the indexing again"):
        SearchIndex(directory, model, processor)
    bring(lookup=lookup)
    assert [hit.image_id for hit in SearchIndex(directory, model, processor).search("a red square", k=8)] == expected


# Opens a segment whose bytes differ in one integer, and reads all of it, many times.
FUZZ = """
import json, random, struct, sys
from pathlib import Path
from holistic_clip_hf.search.segments import stamps
from holistic_clip_hf.search.store import open_segment, read_index_manifest, vectors_of
directory, path = Path(sys.argv[1]), Path(sys.argv[2])
layout, draw = read_index_manifest(directory).layout, random.Random(int(sys.argv[3]))
good, opened = path.read_bytes(), 0
for number in range(int(sys.argv[4])):
    place = 4 * draw.randrange(len(good) // 4)
    value = draw.choice([0, 1, 7, 2**31 - 1, 2**32 - 1, draw.randrange(2**32)])
    other = path.with_name(f"{number}.arrow")
    other.write_bytes(good[:place] + struct.pack("<I", value) + good[place + 4:])
    found = open_segment(other, layout)
    if found is not None:
        opened += 1
        stamps(found[0])
        found[0].with_format("arrow")[:].to_pydict()
        for name in layout.vector_names:
            for block in vectors_of(found[0], name):
                assert block.shape[1] == layout.width and block.sum() is not None
    other.unlink()
print(opened)
"""


@pytest.mark.slow
def test_no_wrong_number_in_a_segment_crashes(bring: Indexing, tmp_path: Path) -> None:
    bring()
    directory = tmp_path / "index"
    path = directory / read_index_manifest(directory).segments[0].file
    ran = subprocess.run(
        [sys.executable, "-c", FUZZ, str(directory), str(path), "0", "600"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert ran.returncode == 0, (ran.returncode, ran.stderr[-2000:])
    assert 0 < int(ran.stdout.splitlines()[-1]) < 600


def test_an_index_that_may_not_be_written_is_searched(
    bring: Indexing, model: HolisticCLIPModel, processor: HolisticCLIPProcessor, tmp_path: Path
) -> None:
    """Nothing is written on opening, as the times and names of all files show."""
    bring()
    directory = tmp_path / "index"

    def state() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (directory, *directory.rglob("*"))}

    before, modes = state(), {path: path.stat().st_mode for path in (directory, *directory.rglob("*"))}
    for path in modes:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert len(SearchIndex(directory, model, processor).search("a red square", k=3)) == 3
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert state() == before


def wrong(*path: str | int, value: object) -> Callable[[str], str]:
    """Change one member of a manifest."""

    def change(text: str) -> str:
        found = json.loads(text)
        place = found
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        return json.dumps(found)

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (wrong("segments", 0, "rows", value=-1), "is damaged.*Delete it"),
        (wrong("segments", 0, "rows", value="5"), "is damaged"),
        (wrong("segments", 0, "dead", value=[99]), "is damaged"),
        (wrong("segments", 0, "dead", value=[-1]), "is damaged"),
        (wrong("segments", 0, "dead", value=["0"]), "is damaged"),
        (wrong("segments", 0, "bytes", value=None), "is damaged"),
        (wrong("layout", "width", value=0), "is damaged"),
        (wrong("layout", "width", value="16"), "is damaged"),
        (wrong("layout", "perspectives", value=[1, 2, 3]), "is damaged"),
        (wrong("layout", "vectors", value="all"), "is damaged"),
        (wrong("lookup", value="fast"), "is damaged"),
        (wrong("origin", value=[]), "is damaged"),
        (wrong("left_out", value=[[1, 2, 3, True]]), "is damaged"),
        (lambda text: text[:100], "is damaged.*Delete it"),
        (lambda text: "[]", "is damaged"),
        (lambda text: "{}", "format None"),
        (lambda text: text.replace('"format": 1', '"format": 99'), "format 99; this version reads 1"),
        (lambda text: text.replace("segments/0", "../../0"), "not a file of an index"),
        (lambda text: text.replace('"layout"', '"outlay"'), "is damaged"),
        (lambda text: text.replace('"root"', '"rot"'), "is damaged"),
        (lambda text: re.sub('"checkpoint": "[^"]*"', '"checkpoint": {}', text), "is damaged"),
        (lambda text: text.replace('"kind": "folder"', '"kind": "table"'), "is damaged"),
    ],
)
def test_a_damaged_manifest(bring: Indexing, tmp_path: Path, damage: Callable[[str], str], message: str) -> None:
    bring()
    whole, path = rows(tmp_path / "index"), tmp_path / "index" / "index.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=message):
        bring()
    path.unlink()
    assert counts(bring())[0] == 8 and rows(tmp_path / "index") == whole
