"""What is indexed: every image below a folder and nothing beyond it, or the rows of a data set."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from holistic_clip_hf.images import folders as images_module
from holistic_clip_hf.images.sources import Item, Skipped
from holistic_clip_hf.search import DatasetImages, FolderImages

SECRET = b"a secret"


def split(images: FolderImages | DatasetImages) -> tuple[dict[str, Item], dict[str, str]]:
    found = list(images.items())
    items = {each.image_id: each for each in found if isinstance(each, Item)}
    return items, {each.item: each.reason for each in found if isinstance(each, Skipped)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images below a folder, a secret beside it, and links of all kinds."""
    root, outside = tmp_path / "photos", tmp_path / "outside"
    (root / "deep" / "er").mkdir(parents=True)
    (root / ".hidden").mkdir()
    outside.mkdir()
    Image.new("RGB", (4, 4)).save(root / "a.PNG", format="png")
    Image.new("RGB", (4, 4)).save(root / "deep" / "er" / "b c ü.jpeg")
    for secret in (outside / "secret.png", root / ".hidden" / "c.png"):
        secret.write_bytes(SECRET)
    (root / "notes.txt").write_text("x")
    (root / "README").write_text("x")
    (root / "out.png").symlink_to(outside / "secret.png")
    (root / "in.png").symlink_to(root / "a.PNG")
    (root / "linked").symlink_to(outside)
    (root / "dead.png").symlink_to(root / "nothing.png")
    return root


def test_a_folder_is_read_as_far_as_it_goes(folder: Path) -> None:
    images = FolderImages(folder)
    items, skipped = split(images)
    assert list(items) == ["a.PNG", "deep/er/b c ü.jpeg"]
    facts = os.stat(folder / "a.PNG")
    assert items["a.PNG"].stamp == f"{facts.st_size} {facts.st_mtime_ns}"
    assert skipped == {
        **dict.fromkeys(["dead.png", "in.png", "out.png"], "a link; links are not followed"),
        "linked": "a link to a folder; links are not followed",
    }
    assert images.others == {".txt": 1, "": 1}
    assert images.read("a.PNG") == (folder / "a.PNG").read_bytes()
    assert split(images)[0].keys() == items.keys() and images.others == {".txt": 1, "": 1}


def test_the_folder_itself_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "album").symlink_to(folder)
    assert list(split(FolderImages(tmp_path / "album"))[0]) == ["a.PNG", "deep/er/b c ü.jpeg"]


@pytest.mark.parametrize(
    "image_id",
    [
        "../outside/secret.png",
        "deep/../../outside/secret.png",
        "./a.PNG",
        "/etc/passwd",
        "deep//er/b c ü.jpeg",
        "out.png",
        "in.png",
        "linked/secret.png",
        "",
        ".",
        "deep",
        "a.PNG\0.png",
        "a.PNG/x",
        "nothing.png",
    ],
)
def test_nothing_outside_is_opened(folder: Path, image_id: str) -> None:
    with pytest.raises(OSError):  # noqa: PT011 - of several kinds
        FolderImages(folder).read(image_id)


def test_links_that_appear_after_the_walk_are_not_followed(folder: Path) -> None:
    images = FolderImages(folder)
    assert "deep/er/b c ü.jpeg" in split(images)[0]
    outside = folder.parent / "outside"
    (outside / "b c ü.jpeg").write_bytes(SECRET)
    os.rename(folder / "deep" / "er", folder / "deep" / "was")
    (folder / "deep" / "er").symlink_to(outside)
    os.remove(folder / "a.PNG")
    (folder / "a.PNG").symlink_to(outside / "secret.png")
    for image_id in ("deep/er/b c ü.jpeg", "a.PNG"):
        with pytest.raises(OSError):  # noqa: PT011 - ELOOP, or ENOTDIR for a folder
            images.read(image_id)


def test_what_is_no_regular_file_does_not_hang(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    assert split(FolderImages(folder))[1]["pipe.png"] == "not a regular file"
    script = f"from holistic_clip_hf.search import FolderImages; FolderImages({str(folder)!r}).read('pipe.png')"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "pipe.png is not a regular file" in ran.stderr


def test_names_and_folders_that_cannot_be_read_are_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff.png"))).write_bytes(b"x")
    walk = os.walk

    def walk_with_a_closed_folder(root: Path, onerror: object = None, **options: object) -> object:
        error = PermissionError(13, "Permission denied", os.path.join(root, "deep"))
        onerror(error)  # type: ignore[operator] - root may read everything, so the system itself does not refuse
        return walk(root, **options)

    monkeypatch.setattr(images_module.os, "walk", walk_with_a_closed_folder)
    skipped = split(FolderImages(folder))[1]
    assert skipped["'bad\\udcff.png'"] == "its name is not UTF-8"
    assert skipped["deep"] == "PermissionError: Permission denied"


def test_large_files_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "MOST_BYTES", 10)
    with pytest.raises(OSError, match="a.PNG has .* bytes; the limit is 10"):
        FolderImages(folder).read("a.PNG")


def test_no_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", __file__):
        with pytest.raises(ValueError, match="not a folder"):
            FolderImages(path)


def test_rows_of_a_data_set(corpus: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = corpus.add_column("year", list(range(8))).add_column("who", ["ann"] * 8)
    images = DatasetImages(dataset, columns=["year", "who"])
    items, skipped = split(images)
    assert list(items) == corpus["image_id"] and not skipped
    assert images.columns("red-circle") == {"year": corpus["image_id"].index("red-circle"), "who": "ann"}
    assert Image.open(io.BytesIO(images.read("red-circle"))).size == (32, 32)

    def stamps(changed: Dataset) -> list[str]:
        return [item.stamp for item in split(DatasetImages(changed, columns=["year", "who"]))[0].values()]

    same = stamps(dataset)
    assert stamps(dataset) == same and len(set(same)) == 8
    other = dataset.map(lambda row, index: {"year": row["year"] + 10 * (index == 3)}, with_indices=True)
    assert [a == b for a, b in zip(stamps(other), same, strict=True)] == [True] * 3 + [False] + [True] * 4
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    paths = Dataset.from_dict({"image_id": ["a", "b", "a", "c"], "image": [str(tmp_path / "x.png")] * 3 + [None]})
    images = DatasetImages(paths.cast_column("image", corpus.features["image"]))
    items, skipped = split(images)
    assert not items and "its path is not below an allowed folder" in skipped["b"]
    monkeypatch.setenv("HOLISTIC_CLIP_IMAGE_ROOTS", str(tmp_path))
    items, skipped = split(images)
    assert list(items) == ["a", "b"]
    assert skipped == {"a": "row 2 has the image id of row 0", "c": "OSError: the row has no image"}


def test_data_sets_that_hold_no_images(corpus: Dataset) -> None:
    with pytest.raises(ValueError, match=r"columns \['name'\] are missing; expected some of image_id"):
        DatasetImages(corpus, id_column="name")
    with pytest.raises(ValueError, match="'captions' holds.*expected images"):
        DatasetImages(corpus, image_column="captions")
    with pytest.raises(ValueError, match="'captions' of .* nothing to filter by"):
        DatasetImages(corpus, columns=["captions"])
