"""Damaged images at every door: each is left out, counted and named, or shown; the others are not lost over it."""

import contextlib
import io
import pickle
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

from _child import Place, command, run, sentence
from _frame import REFUSED, SECONDS, Campaign, Draw, Outcome, changed, judge, surroundings
from _nonsense import flip
from _verbs import COLUMNS, PERSPECTIVES, draw_photo, make_index, make_world, rows_of_index, write_list
from PIL import Image

MODES = ("RGB", "RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F", "YCbCr")
GOOD = ("good0.png", "good1.jpg", "good2.png")
ENDINGS = ("png", "jpg", "webp", "gif", "tiff", "bmp")
HUGE = 65_000


def whole(draw: Draw) -> tuple[bytes, str]:
    """Return a picture in one of the formats that Pillow writes here, and the format's name."""
    while True:
        form, mode = draw.choice(sorted(Image.SAVE)), draw.choice(MODES)
        image = draw_photo(draw.randrange(40), (draw.randint(20, 90), draw.randint(20, 90)))
        image = image.convert("L").convert(mode) if mode in ("I;16", "I", "F") else image.convert(mode)
        options = {"exif": exif(draw)} if form in ("JPEG", "PNG", "WEBP", "TIFF") and draw.random() < 0.3 else {}
        stream = io.BytesIO()
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.save(stream, form, **options)
            if stream.tell():
                return stream.getvalue(), form


def exif(draw: Draw) -> bytes:
    """Return an EXIF block, often a damaged one."""
    block = Image.Exif()
    block[0x0112] = draw.randint(0, 9)
    data = block.tobytes()
    return draw.choice([data, flip(data, draw), data[: draw.randrange(len(data))], b"Exif\x00\x00" + b"\xff" * 40])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    """Put a PNG together, whatever it says of itself."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    """Return files that are small and say, or are, something large."""
    million = zlib.compress(bytes(50_000_000), 9)
    line = zlib.compress(bytes(3_001) * 1)
    found = {
        "lying png": png(HUGE, HUGE, 8, 2, million),
        "png of one bit": png(30_000, 30_000, 1, 0, zlib.compress(bytes(3_751) * 30_000, 9)),
        "wide png": png(HUGE, 1, 8, 2, zlib.compress(bytes(1 + 3 * HUGE))),
        "tall png": png(1, HUGE, 8, 2, zlib.compress(bytes(4 * HUGE))),
        "png with a long text": png(1_000, 1, 8, 2, line, chunk(b"zTXt", b"a\x00\x00" + million)),
        "png with a long profile": png(1_000, 1, 8, 2, line, chunk(b"iCCP", b"a\x00\x00" + million)),
        "png without size": png(0, 0, 8, 2, line),
        "lying ppm": f"P6 {HUGE} {HUGE} 255\n".encode() + bytes(100),
        "ppm of negative size": b"P6 -5 -5 255\n" + bytes(100),
        "lying bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, HUGE, HUGE, 1, 24, 0, 0, 1, 1, 0, 0),
        "lying gif": b"GIF89a"
        + struct.pack("<HHBBB", HUGE, HUGE, 0, 0, 0)
        + b",\0\0\0\0"
        + b"\xff" * 5
        + b"\x02\x02L\x01\0;",
        "lying tga": struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, HUGE, HUGE, 24, 0) + b"\xff" * 40,
        "lying pcx": b"\x0a\x05\x01\x08" + struct.pack("<HHHH", 0, 0, HUGE, HUGE) + bytes(116),
    }
    return found | {"many frames": frames(400)}


def frames(number: int) -> bytes:
    stream = io.BytesIO()
    pictures = [Image.new("P", (300, 300), each % 250) for each in range(number)]
    pictures[0].save(stream, "GIF", save_all=True, append_images=pictures[1:])
    return stream.getvalue()


def impostors(canary: Path) -> dict[str, bytes]:
    """Return files that are something else, some of them programs that would write the canary."""
    shell = f"(%pipe%touch {canary}) (w) file\n".encode()
    header = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n" + shell
    return {
        "postscript": header + b"showpage\n%%EOF\n",
        "dos postscript": b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIIIH", 32, 60, 0, 0, 0, 0, 0xFFFF) + shell,
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="file://{canary}"/></svg>'.encode(),
        "pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog/OpenAction<</S/JavaScript>>>>endobj\n",
        "html": b"<html><script>alert(1)</script></html>",
        "pickle": pickle.dumps(Touching(str(canary))),
        "zip": b"PK\x03\x04" + bytes(60),
        "shell": f"#!/bin/sh\ntouch {canary}\n".encode(),
        "wmf": b"\xd7\xcd\xc6\x9a" + bytes(80),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(80),
        "fits": b"SIMPLE  =                    T" + b" " * 2850,
        "empty": b"",
        "one byte": b"\x89",
    }


class Touching:
    """What a pickle makes run."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        import os

        return os.system, (f"touch {self.path}",)


def damaged(canary: Path, draw: Draw) -> tuple[bytes, str]:
    """Draw a damaged image, and say what is wrong with it."""
    kind = draw.choices(
        ["flip", "head", "cut", "zeros", "junk", "bomb", "impostor", "whole"], [4, 3, 3, 1, 1, 2, 2, 1]
    )[0]
    if kind == "bomb":
        name = draw.choice(sorted(all_bombs := bombs()))
        return all_bombs[name], name
    if kind == "impostor":
        name = draw.choice(sorted(others := impostors(canary)))
        return others[name], name
    data, form = whole(draw)
    if kind == "flip":
        data = flip(data, draw)
    elif kind == "head":
        data = flip(data, draw, within=60)
    elif kind == "cut":
        data = data[: draw.randrange(len(data))]
    elif kind == "zeros":
        start = draw.randrange(len(data))
        data = data[:start] + bytes(min(64, len(data) - start)) + data[start + 64 :]
    elif kind == "junk":
        data = draw.choice([draw.randbytes(40) + data, data + draw.randbytes(4_000)])
    return data, f"{kind} {form}"


def lay_out(place: Place, data: bytes, draw: Draw) -> str:
    """Write three good images, the damaged one under some name, and the list; return its name."""
    folder, name = place.given / "photos", f"bad.{draw.choice(ENDINGS)}"
    folder.mkdir()
    for number, good in enumerate(GOOD):
        draw_photo(number).save(folder / good)
    (folder / name).write_bytes(data)
    write_list(place.given / "captions.csv", [*GOOD, name])
    return name


Wrong = Callable[[], str]


def missing(kept: set[str], told: set[str], name: str) -> str:
    """Say which image was lost: good ones have to be kept, and the damaged one kept or told."""
    lost = (set(GOOD) - kept) or ({name} - kept - told)
    return f"neither kept nor told: {sorted(lost)}" if lost else ""


def at_corpus(shared: Path, place: Place, name: str) -> tuple[Callable[[], None], Wrong]:
    words = ["list", place.given / "captions.csv", "--root", place.given / "photos", *COLUMNS, "--no-report"]

    def wrong() -> str:
        from holistic_clip_hf.corpus.build import load_corpus, read_manifest

        manifest = read_manifest(place.out / "corpus")
        listed = str([manifest["skipped"], *(each["skipped"] for each in manifest["shards"].values())])
        kept = set(load_corpus(place.out / "corpus")["image_id"])
        return missing(kept, {name} if name in listed else set(), name)

    return command("corpus", *words, "--output", place.out / "corpus"), wrong


def at_index(shared: Path, place: Place, name: str) -> tuple[Callable[[], None], Wrong]:
    words = [place.given / "photos", "--model", shared / "model", "--index", place.out / "index"]

    def wrong() -> str:
        kept, told = rows_of_index(place.out / "index")
        return missing(set(kept), set(told), name)

    return command("search", "index", *words), wrong


def at_captioner(shared: Path, place: Place, name: str) -> tuple[Callable[[], None], Wrong]:
    asked = ["--model", shared / "captioner", "--perspectives-file", shared / "prompts.yaml"]

    def wrong() -> str:
        from holistic_clip_hf.captioning.store import CaptionStore

        rows = list(CaptionStore(place.out / "rows").rows())
        kept = {row.image_id for row in rows if row.status != "failed"}
        return missing(kept, {row.image_id for row in rows}, name)

    return command("caption", "folder", place.given / "photos", *asked, "--output", place.out / "rows"), wrong


def at_example(shared: Path, place: Place, name: str) -> tuple[Callable[[], None], Wrong]:
    return command("search", "find", "--like", place.given / "photos" / name, "--index", shared / "index"), str


def write_corpus(place: Place, name: str) -> Path:
    """Write a corpus whose bytes nobody verified, as strangers' corpora are, with one bad image in each split."""
    from datasets import Value

    from holistic_clip_hf.corpus.build import build_corpus, corpus_features

    photos, rows = place.given / "photos", []
    for split in ("train", "validation", "test"):
        for number, path in enumerate([*(photos / good for good in GOOD * 3), photos / name]):
            captions = [{"perspective": each, "text": f"{each} {number}", "source": "drawn"} for each in PERSPECTIVES]
            image = {"bytes": path.read_bytes(), "path": None}
            rows.append({"image_id": f"{split}-{number}", "image": image, "captions": captions, "split": split})
    features = corpus_features(split=Value("string"))
    build_corpus(place.given / "corpus", {"all": lambda: rows}, features, fingerprint="1", counted=("split",))
    return place.given / "corpus"


def at_training(shared: Path, place: Place, name: str) -> tuple[Callable[[], None], Wrong]:
    def work() -> None:
        corpus = write_corpus(place, name)
        words = ["--recipe", shared / "workers0.yaml", "--run", "holistic", "--corpus", corpus]
        command("train", *words, "--output-dir", place.out)()

    def wrong() -> str:
        return "" if (place.out / "workers0" / "holistic" / "finished.json").is_file() else "there is no checkpoint"

    return work, wrong


def at_evaluation(shared: Path, place: Place, name: str) -> tuple[Callable[[], None], Wrong]:
    def work() -> None:
        corpus = write_corpus(place, name)
        command("evaluate", "--model", shared / "model", "--corpus", corpus, "--output", place.out / "results.json")()

    return work, lambda: "" if (place.out / "results.json").is_file() else "there are no records"


def at_processor(shared: Path, place: Place, name: str) -> tuple[Callable[[], None], Wrong]:
    def work() -> None:
        from holistic_clip_hf import HolisticCLIPProcessor

        processor = HolisticCLIPProcessor.from_pretrained(shared / "model")
        pixels = processor(images=str(place.given / "photos" / name), return_tensors="pt")["pixel_values"]
        if not pixels.isfinite().all():
            raise AssertionError("pixels are not finite")

    return sentence(work), str


DOORS = {
    "corpus": at_corpus,
    "search index": at_index,
    "caption": at_captioner,
    "search find --like": at_example,
    "train": at_training,
    "evaluate": at_evaluation,
    "processor": at_processor,
}
ONE_IMAGE = ("search find --like", "processor")  # which may be refused; elsewhere one image must not end the run


def attempt(shared: Path, place: Place, draw: Draw) -> Outcome:
    """Bring a damaged image among good ones to a door."""
    data, told = damaged(place.canary, draw)
    name, door = lay_out(place, data, draw), draw.choice(sorted(DOORS))
    before = {key: value for key, value in surroundings(place).items() if not key.startswith("given/corpus")}
    work, wrong = DOORS[door](shared, place, name)
    ended = run(work, place, SECONDS)

    def problem() -> str:
        after = {key: value for key, value in surroundings(place).items() if not key.startswith("given/corpus")}
        return changed(before, after) or wrong()

    outcome = judge(ended, f"{door}: {told} as {name}", wrong=problem)
    if outcome.kind == REFUSED and door not in ONE_IMAGE:
        return Outcome("lost", outcome.about, f"one image ended the run: {outcome.told}", outcome.seconds)
    return outcome


def prepare(shared: Path) -> None:
    make_world(shared)
    make_index(shared)


CAMPAIGN = Campaign(
    name="images",
    about="an image among good ones that is damaged (bits, cuts, EXIF, sizes that lie), a bomb, or something else "
    "under its name, in every format that Pillow writes, at 7 doors: corpus, index, caption, find, train, evaluate, "
    "processor",
    tries=400,
    attempt=attempt,
    prepare=prepare,
)
