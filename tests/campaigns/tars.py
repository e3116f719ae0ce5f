"""Damaged and evil archives: members that lead elsewhere, lie about their size, or are no files at all."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

from _child import Place, command, run
from _frame import SECONDS, Campaign, Draw, Outcome, changed, judge, surroundings
from _nonsense import flip, spoil
from _verbs import draw_photo

SECRET = (1, 2, 3)  # colour of a picture beside the archive
PAIRS = 4
Archive = tarfile.TarFile
BLOCK = 512


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    draw_photo(number).save(stream, "PNG")
    return stream.getvalue()


def add(archive: Archive, name: str, data: bytes, **fields: object) -> None:
    """Add a member; `fields` are those of its header."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(data) if member.isreg() else None)


def add_pair(archive: Archive, name: str, number: int) -> None:
    add(archive, f"{name}.png", picture(number))
    add(archive, f"{name}.txt", f"a drawing, number {number}".encode())


def link(kind: bytes, target: str) -> Callable[[Archive, Place], None]:
    def put(archive: Archive, place: Place) -> None:
        add(archive, "evil.png", b"", type=kind, linkname=target.replace("BESIDE", str(place.beside)))
        add(archive, "evil.txt", b"a secret")

    return put


def named(name: str) -> Callable[[Archive, Place], None]:
    return lambda archive, place: add_pair(archive, name.replace("BESIDE", str(place.beside)), 9)


def of_type(kind: bytes) -> Callable[[Archive, Place], None]:
    def put(archive: Archive, place: Place) -> None:
        add(archive, "evil.png", b"", type=kind, devmajor=1, devminor=5)
        add(archive, "evil.txt", b"a device")

    return put


def with_header(**headers: str) -> Callable[[Archive, Place], None]:
    def put(archive: Archive, place: Place) -> None:
        add(archive, "evil.png", picture(9), pax_headers=headers)
        add(archive, "evil.txt", b"odd headers")

    return put


def put_sparse(archive: Archive, place: Place) -> None:
    """Say that a hundred bytes are thirty gigabytes."""
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "evil.png"}
    headers["GNU.sparse.realsize"] = str(30 * 2**30)
    add(archive, "sparse.png", b"1\n0\n100\n" + bytes(504) + bytes(100), pax_headers=headers)
    add(archive, "sparse.txt", b"thirty gigabytes")


EVILS: dict[str, Callable[[Archive, Place], None]] = {
    "link out": link(tarfile.SYMTYPE, "BESIDE/secret.png"),
    "link up": link(tarfile.SYMTYPE, "../beside/secret.png"),
    "link to itself": link(tarfile.SYMTYPE, "evil.png"),
    "link to a device": link(tarfile.SYMTYPE, "/dev/zero"),
    "hard link": link(tarfile.LNKTYPE, "BESIDE/secret.png"),
    "hard link to itself": link(tarfile.LNKTYPE, "evil.png"),
    "absolute name": named("BESIDE/evil"),
    "name up": named("../../beside/evil"),
    "name without letters": named("///"),
    "name with a line": named("ev\nil"),
    "name with escapes": named("\x1b[31mevil\x07"),
    "name with a letter that is not UTF-8": named("ev\udce9il"),
    "name of 4,000 letters": named("e" * 4_000),
    "name of a hidden file": named(".evil"),
    "device": of_type(tarfile.CHRTYPE),
    "disk": of_type(tarfile.BLKTYPE),
    "pipe": of_type(tarfile.FIFOTYPE),
    "unknown kind": of_type(b"Z"),
    "sparse": put_sparse,
    "negative size": with_header(size="-5"),
    "size that is no number": with_header(size="a"),
    "size of a terabyte": with_header(size=str(2**40)),
    "path up": with_header(path="../../beside/evil.png"),
    "time that is not a number": with_header(mtime="nan"),
    "member twice": lambda archive, place: [add_pair(archive, "twice", each) for each in (7, 8)] and None,
    "caption that is not text": lambda archive, place: add(archive, "00000.txt2", b"\xff\xfe\x00"),
    "caption of 20 MB": lambda archive, place: add(archive, "big.txt", b"a" * 20_000_000),
    "json that is none": lambda archive, place: add(archive, "evil.json", b"{"),
    "only a caption": lambda archive, place: add(archive, "alone.txt", b"nobody"),
    "picture that is none": lambda archive, place: add(archive, "evil.png", b"not a picture"),
}
WHOLE_FILE = ("cut", "flip", "gzip bomb", "gzip cut", "bytes", "checksum", "empty", "not a tar")


def spoil_whole(data: bytes, kind: str, draw: Draw) -> tuple[bytes, str]:
    """Damage an archive as a whole; return it and its ending."""
    if kind == "cut":
        return data[: draw.randrange(len(data))], "tar"
    if kind == "flip":
        return flip(data, draw, most=60), "tar"
    if kind == "gzip bomb":
        return gzip.compress(data[:BLOCK] + bytes(400_000_000), 9), "tar.gz"
    if kind == "gzip cut":
        packed = gzip.compress(data)
        return packed[: draw.randrange(len(packed))], "tar.gz"
    if kind == "checksum":
        start = draw.randrange(len(data) // BLOCK) * BLOCK
        return data[: start + 148] + b"0000000\0" + data[start + 156 :], "tar"
    if kind == "bytes":
        return spoil(data, draw)[0], "tar"
    return (b"" if kind == "empty" else b"PK\x03\x04" + bytes(900)), "tar"


def attempt(shared: Path, place: Place, draw: Draw) -> Outcome:
    """Build a corpus of an archive that holds good pairs and something evil."""
    stream, kind = io.BytesIO(), draw.choice([*EVILS, *WHOLE_FILE])
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
        position = draw.randrange(PAIRS)
        for number in range(PAIRS):
            if number == position and kind in EVILS:
                EVILS[kind](archive, place)
            add_pair(archive, f"{number:05}", number)
    data, ending = stream.getvalue(), "tar"
    if kind in WHOLE_FILE:
        data, ending = spoil_whole(data, kind, draw)
    path = place.given / f"shard.{ending}"
    path.write_bytes(data)
    draw_photo(0).point(lambda value: SECRET[0]).save(place.beside / "secret.png")
    before, words = surroundings(place), ["--caption", "txt=short", "--output", place.out / "corpus", "--no-report"]
    ended = run(command("corpus", "tar", path, *words), place, SECONDS)
    good = {f"{number:05}" for number in range(PAIRS)} if kind in EVILS else set()
    return judge(ended, kind, wrong=lambda: changed(before, surroundings(place)) or problem(place, good))


def problem(place: Place, good: set[str]) -> str:
    """Say what is wrong with the corpus: good pairs are kept, and nothing comes from outside of the archive."""
    from holistic_clip_hf.corpus.build import load_corpus, read_manifest

    rows = load_corpus(place.out / "corpus").cast_column("image", image_as_bytes())
    secret = (place.beside / "secret.png").read_bytes()
    if any(row["image"]["bytes"] in (None, secret) for row in rows):
        return "an image from outside of the archive is in the corpus"
    lost = [name for name in sorted(good) if not any(name in row["image_id"] for row in rows)]
    manifest = read_manifest(place.out / "corpus")
    told = [manifest["skipped"], *(each["skipped"] for each in manifest["shards"].values())]
    return "" if not lost or "'shard'" in str(told) else f"lost {lost}; told is {told}"


def image_as_bytes() -> object:
    from datasets import Image

    return Image(decode=False)


CAMPAIGN = Campaign(
    name="tars",
    about="`corpus tar` of an archive with links, absolute names, `..`, devices, pipes, sparse members, doubles, "
    "sizes that lie, gzip bombs, cuts and flipped bits",
    tries=100,
    attempt=attempt,
)
