"""Sources of corpora that are Debian packages, on small folders of the same layout."""

import gzip
import hashlib
import io
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from holistic_clip_hf.images.sources import Item, Skipped
from training.debian.fashion_mnist import CLASSES, PERSPECTIVES, FashionMNIST, captions_of, style_of
from training.debian.openclipart import OpenClipArt
from training.debian.packages import DebianPackage, load_packages, unpack
from training.debian.photos import is_photograph, write_photos
from training.debian.tuxpaint import TuxPaint

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 2"><rect width="4" height="2" fill="#f00"/></svg>'


def texts(item: Item) -> dict[str, str]:
    return {caption["perspective"]: caption["text"] for caption in item.captions}


def write_png(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)


def test_stamps_have_their_sentence_and_their_folders(tmp_path: Path) -> None:
    birds = tmp_path / "usr/share/tuxpaint/stamps/animals/birds"
    write_png(birds / "peacock.png")
    (birds / "peacock.txt").write_text("A peacock.\nde.utf8=Ein Pfau.\n", encoding="utf-8")
    (birds / "swan.svg").write_text(SVG)
    (birds / "swan.txt").write_text("A swan.\n")
    (birds / "ghost.txt").write_text("A ghost.\n")
    source = TuxPaint(tmp_path, "1")
    ghost, peacock, swan = source.items()
    assert isinstance(peacock, Item) and isinstance(swan, Item)
    assert ghost == Skipped("animals/birds/ghost", "a text without a picture")
    assert texts(peacock) == {"short": "A peacock.", "category": "animals, birds"}
    assert source.read(peacock.place) == (birds / "peacock.png").read_bytes()
    drawn = Image.open(io.BytesIO(source.read(swan.place)))
    assert drawn.size == (256, 128) and drawn.convert("RGB").getpixel((9, 9)) == (255, 0, 0)


def test_a_drawing_that_does_not_draw_is_an_error_of_reading(tmp_path: Path) -> None:
    stamps = tmp_path / "usr/share/tuxpaint/stamps"
    stamps.mkdir(parents=True)
    (stamps / "torn.svg").write_text("<svg")
    with pytest.raises(OSError, match="does not draw"):
        TuxPaint(tmp_path, "1").read("torn.svg")


def clip_art(tmp_path: Path, work: str) -> list[Item | Skipped]:
    write_png(tmp_path / "usr/share/openclipart/png/sports_gear/bat.png")
    drawing = tmp_path / "usr/share/openclipart/svg/sports_gear/bat.svg"
    drawing.parent.mkdir(parents=True)
    names = 'xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:d="http://purl.org/dc/elements/1.1/"'
    drawing.write_text(f"<svg {names}><r:RDF><Work>{work}</Work></r:RDF></svg>")
    return list(OpenClipArt(tmp_path, tmp_path, "1").items())


def subjects(*words: str) -> str:
    return f"<d:subject><r:Bag>{''.join(f'<r:li>{word}</r:li>' for word in words)}</r:Bag></d:subject>"


def test_clip_art_has_what_its_drawing_says(tmp_path: Path) -> None:
    described = "<d:title>Baseball  Bat</d:title><d:description>A bat made of wood.</d:description>"
    (item,) = clip_art(tmp_path, described + subjects("sports", "HASH(0x83a)", "hash", "", "bat", "bat"))
    assert isinstance(item, Item) and item.image_id == "sports_gear/bat"
    assert texts(item) == {
        "short": "Baseball Bat",
        "nouns": "sports, bat",
        "detail": "A bat made of wood.",
        "category": "sports gear",
    }


@pytest.mark.parametrize("description", ["", "Baseball Bat", "Me, me@example.org, or nobody", "too few words"])
def test_descriptions_that_describe_nothing_are_left_out(tmp_path: Path, description: str) -> None:
    work = f"<d:title>Part of the Flat Icon Collection (2004)</d:title><d:description>{description}</d:description>"
    (item,) = clip_art(tmp_path, work)
    assert isinstance(item, Item) and texts(item) == {"category": "sports gear"}


def test_second_names_of_a_picture_and_torn_drawings_are_listed(tmp_path: Path) -> None:
    clip_art(tmp_path, "<d:title>A bat</d:title>")
    pictures = tmp_path / "usr/share/openclipart/png"
    (pictures / "club.png").symlink_to("sports_gear/bat.png")
    write_png(pictures / "torn.png")
    (tmp_path / "usr/share/openclipart/svg/torn.svg").write_text("<svg")
    club, _, torn = OpenClipArt(tmp_path, tmp_path, "1").items()
    assert club == Skipped("club", "another name of a picture: sports_gear/bat.png")
    assert torn == Skipped("torn", "its drawing does not say what it is: ParseError")


def test_clothes_have_the_pixels_and_labels_of_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "usr/share/datasets/fashion-mnist"
    folder.mkdir(parents=True)
    pixels = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    for stem, labels in (("train", bytes([9, 0])), ("t10k", bytes([3, 7]))):
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels))
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels.tobytes()))
    source = FashionMNIST(tmp_path, "1")
    items = [item for item in source.items() if isinstance(item, Item)]
    assert [item.image_id for item in items] == ["train/00000", "train/00001", "test/00000", "test/00001"]
    assert [texts(item)["class"] for item in items] == ["ankle boot", "t-shirt", "dress", "sneaker"]
    assert [item.split for item in items] == ["", "", "test", "test"]
    found = np.asarray(Image.open(io.BytesIO(source.read(items[3].place))))
    np.testing.assert_array_equal(found, pixels[1])


def test_clothes_have_a_category_and_a_style() -> None:
    flat, half = np.zeros((28, 28), np.uint8), np.zeros((28, 28), np.uint8)
    flat[:, 9:] = 128  # of what is not background, mean 128 and deviation 0
    half[:14], half[14:, :9] = 250, 50
    by_category: dict[str, set[str]] = {}
    for name in CLASSES:
        told = {caption["perspective"]: caption["text"] for caption in captions_of(name, flat)}
        assert list(told) == list(PERSPECTIVES) and (told["class"], told["style"]) == (name, "grey and plain")
        by_category.setdefault(told["category"], set()).add(name)
    assert by_category == {
        "tops": {"t-shirt", "pullover", "coat", "shirt"},
        "trousers": {"trouser"},
        "dresses": {"dress"},
        "footwear": {"sandal", "sneaker", "ankle boot"},
        "bags": {"bag"},
    }
    # 392 pixels of 250 and 126 of 50: mean 201, deviation 86.
    assert style_of(half) == "bright and patterned" and style_of(flat // 2) == "dark and plain"
    assert style_of(flat * 0) == "dark and plain"


def test_every_package_is_pinned() -> None:
    for package in load_packages().values():
        assert len(package.sha256) == 64 and package.version and package.license


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A real Debian archive, and an `apt-get` on the path that hands it out."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is on Debian only")
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        "Package: stamps\nVersion: 1\nArchitecture: all\nMaintainer: N <n@example.org>\nDescription: stamps\n"
    )
    (root / "usr").mkdir()
    (root / "usr/stamp").write_text("a stamp")
    built = tmp_path / "built.deb"
    subprocess.run(["dpkg-deb", "--build", str(root), str(built)], check=True, capture_output=True)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "apt-get").write_text(f"#!/bin/sh\ncp '{built}' stamps_1_all.deb\n")
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return built.read_bytes()


def test_a_package_is_unpacked_once(tmp_path: Path, archive: bytes) -> None:
    package = DebianPackage("stamps", "1", hashlib.sha256(archive).hexdigest(), "Stamps", "MIT")
    unpacked = unpack(package, tmp_path / "cache")
    assert (unpacked / "usr/stamp").read_text() == "a stamp"
    (unpacked / "usr/stamp").write_text("read from here")
    assert (unpack(package, tmp_path / "cache") / "usr/stamp").read_text() == "read from here"
    assert list((tmp_path / "cache").iterdir()) == [unpacked]


def test_a_changed_package_is_refused(tmp_path: Path, archive: bytes) -> None:
    with pytest.raises(ValueError, match="expected 000.*correct packages.json"):
        unpack(DebianPackage("stamps", "1", "0" * 64, "Stamps", "MIT"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_apt_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"apt-get and dpkg-deb cannot be found.*unpack stamps 1 into .*stamps-0000"):
        unpack(DebianPackage("stamps", "1", "0" * 64, "Stamps", "MIT"), tmp_path / "cache")


def test_photographs_among_stamps_are_written_with_a_table(tmp_path: Path) -> None:
    """Told from drawings by their colours; folders of drawings are not looked into."""
    stamps = tmp_path / "stamps/usr/share/tuxpaint/stamps"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for name, pixels in {
        "animals/birds/swan": noise,
        "animals/cartoon/duck": noise,
        "symbols/sum": noise,
        "food/apple": np.full((40, 40, 3), 90, np.uint8),
    }.items():
        (stamps / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(stamps / f"{name}.png")
        (stamps / f"{name}.txt").write_text(f"The {name}.\n")
    assert write_photos(TuxPaint(tmp_path / "stamps", "1"), tmp_path / "photos") == 1
    written = (tmp_path / "photos" / "captions.csv").read_text(encoding="utf-8").splitlines()
    assert written == ["image,title,kind", 'birds-swan.png,The animals/birds/swan.,"animals, birds"']
    assert (tmp_path / "photos/birds-swan.png").read_bytes() == (stamps / "animals/birds/swan.png").read_bytes()
    with pytest.raises(ValueError, match="is not empty; expected a new folder"):
        write_photos(TuxPaint(tmp_path / "stamps", "1"), tmp_path / "photos")


def test_a_photograph_has_more_colours_than_the_root_of_its_pixels_allows() -> None:
    """900 opaque pixels: 660 colours, which is 22 times their root, are a photograph, 659 are not."""
    for num_colours, expected in ((660, True), (659, False)):
        number = np.minimum(np.arange(900), num_colours - 1)
        pixels = np.stack([number % 256, number // 256, 0 * number, 255 + 0 * number], axis=-1).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels.reshape(30, 30, 4)).save(file, "PNG")
        assert is_photograph(file.getvalue()) == expected
