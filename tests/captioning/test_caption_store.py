"""Where caption rows are kept: which row counts, who may write, and what a full disk or a torn line leaves behind."""

import json
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from holistic_clip_hf.captioning.store import CaptionRow, CaptionStore
from holistic_clip_hf.sharding import ALL, Shard

FORK = multiprocessing.get_context("fork")


def row(image: str = "a", caption: str = "A dog.", status: str = "ok", error: str = "", **fields: str) -> CaptionRow:
    named = {"perspective": "short", "captioner": "me/c", "revision": "1", "prompt_hash": "0" * 12, **fields}
    return CaptionRow(image_id=image, caption=caption, status=status, error=error, **named)


def add(folder: Path, *rows: CaptionRow, shard: Shard = ALL) -> None:
    with CaptionStore(folder).writer(shard) as writer:
        for each in rows:
            writer.add(each)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [
        row("a", "A dog.\u2028Two\nlines\r\n\x00 «naïve» 犬"),
        row("cut \udcff name", "half \ud83d"),
        row("b", "x" * 100_000, "too_long", error="a length of 1 in words"),
    ]
    add(tmp_path / "new" / "folder", *rows)
    assert list(CaptionStore(tmp_path / "new" / "folder").rows()) == rows
    (file,) = (tmp_path / "new" / "folder").glob("*.jsonl")
    lines = file.read_bytes().decode().split("\n")
    assert [json.loads(line)["caption"] for line in lines[:-1]] == [each.caption for each in rows]


def test_an_answer_counts_before_a_failure_and_the_first_before_the_next(tmp_path: Path) -> None:
    add(tmp_path, row("a", "", "failed", "late"), row("b", "", "failed", "first"), row("c", "C."))
    add(tmp_path, row("a", "A."), row("b", "", "failed", "second"), row("c", "", "failed", "again"))
    add(tmp_path, row("a", "B."), row("d", "", "refusal"), row("a", "A.", perspective="style"))
    found = [(each.image_id, each.perspective, each.caption, each.error) for each in CaptionStore(tmp_path).rows()]
    assert found == [
        ("c", "short", "C.", ""),
        ("a", "short", "A.", ""),
        ("d", "short", "", ""),
        ("a", "style", "A.", ""),
        ("b", "short", "", "second"),
    ]


@pytest.mark.parametrize("field", ["perspective", "captioner", "prompt_hash"])
def test_another_question_or_captioner_has_a_row_of_its_own(tmp_path: Path, field: str) -> None:
    add(tmp_path, row(), row(**{field: "other"}), row(revision="other"))
    assert list(CaptionStore(tmp_path).rows()) == [row(), row(**{field: "other"})]


def test_lines_that_are_no_rows_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(tmp_path, row("a"), row("b"))
    (file,) = tmp_path.glob("*.jsonl")
    good = file.read_bytes().splitlines(keepends=True)
    odd = {**row("c")._asdict(), "status": "odd"}
    bad = [b"\xff\n", b"[" * 99_999 + b"\n", b"3\n", b'{"a": 1}\n', json.dumps(odd).encode() + b"\n", good[1][:-9]]
    file.write_bytes(b"".join([good[0], *bad[:-1], good[1], bad[-1]]))
    with caplog.at_level(logging.WARNING):
        assert [each.image_id for each in CaptionStore(tmp_path).rows()] == ["a", "b"]
    assert [record.args[1] for record in caplog.records if isinstance(record.args, tuple)] == [2, 3, 4, 5, 6, 8]


def test_shards_part_all_images() -> None:
    names = [f"image {number}" for number in range(1000)]
    shards = [Shard.parse(f"{index}/3") for index in range(3)]
    held = [[shard.holds(name) for shard in shards] for name in names]
    assert {sum(each) for each in held} == {1}
    # Of 1,000 draws with p = 1/3, four standard deviations are 60.
    assert all(270 < sum(each[index] for each in held) < 396 for index in range(3))
    assert all(Shard.parse("0/1").holds(name) for name in names)


@pytest.mark.parametrize("text", ["3/3", "-1/3", "1", "a/b", "1/0", "", "1/2/3"])
def test_a_shard_is_a_number_below_another(text: str) -> None:
    with pytest.raises(ValueError, match="expected i/n with i from 0 to n - 1"):
        Shard.parse(text)


def test_a_shard_has_one_writer_at_a_time(tmp_path: Path) -> None:
    def try_another() -> None:
        try:
            add(tmp_path, row("b"))
        except ValueError as error:
            os._exit(7 if "which another process is writing" in str(error) else 1)

    with CaptionStore(tmp_path).writer() as writer:
        writer.add(row("a"))
        other = FORK.Process(target=try_another)
        other.start()
        other.join()
        assert other.exitcode == 7
        add(tmp_path, row("c"), shard=Shard(1, 2))
    assert [each.image_id for each in CaptionStore(tmp_path).rows()] == ["c", "a"]
    with pytest.raises(ValueError, match="not a folder"):
        CaptionStore(next(tmp_path.glob("*.jsonl")))


def test_a_killed_writer_leaves_whole_files_and_its_place(tmp_path: Path) -> None:
    def write_half() -> None:
        with CaptionStore(tmp_path).writer(seconds_per_file=0) as writer:
            writer.add(row("a"))
            (tmp_path / ".1.0-of-1.jsonl.99.partial").write_bytes(b'{"image_id": "b", "cap')
            os.kill(os.getpid(), signal.SIGKILL)

    killed = FORK.Process(target=write_half)
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert [each.image_id for each in CaptionStore(tmp_path).rows()] == ["a"]
    add(tmp_path, row("c"))
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl", ".lock"}
    assert [each.image_id for each in CaptionStore(tmp_path).rows()] == ["a", "c"]


def test_files_are_never_replaced_where_the_clock_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 5)
    for image in "abc":
        add(tmp_path, row(image))
    assert [each.image_id for each in CaptionStore(tmp_path).rows()] == ["a", "b", "c"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root mounts a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_costs_nothing_that_was_written(small_disk: Path) -> None:
    first, second = row("a", "x" * 20_000), row("b", "y" * 60_000)
    add(small_disk, first)
    with pytest.raises(OSError, match=rf"The disk of {small_disk} is full while writing .*\.jsonl"):
        add(small_disk, second)
    assert list(CaptionStore(small_disk).rows()) == [first]
    assert {path.suffix for path in small_disk.iterdir()} == {".jsonl", ".lock"}
    with CaptionStore(small_disk).writer() as writer:
        writer.add(second)
        with pytest.raises(OSError):
            writer.commit()
        subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)  # the rows still wait
    assert list(CaptionStore(small_disk).rows()) == [first, second]


def test_a_file_that_may_not_grow_costs_nothing_that_was_written(tmp_path: Path) -> None:
    """As a quota, where no small disk can be mounted."""
    add(tmp_path, row("a"))

    def write_too_much() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        try:
            add(tmp_path, row("b", "y" * 60_000))
        except OSError:
            os._exit(7)

    limited = FORK.Process(target=write_too_much)
    limited.start()
    limited.join()
    assert limited.exitcode == 7
    assert list(CaptionStore(tmp_path).rows()) == [row("a")]
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl", ".lock"}


def test_every_row_is_written_once(tmp_path: Path) -> None:
    with CaptionStore(tmp_path).writer(seconds_per_file=0) as writer:
        for image in "abc":
            writer.add(row(image))
    files = sorted(tmp_path.glob("*.jsonl"))
    assert [json.loads(file.read_bytes())["image_id"] for file in files] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["cat.png", "metadata.jsonl", ".cat.0-of-1.json.partial"])
def test_rows_are_not_written_among_files_of_others(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"file_name": "cat.png"}')
    refused = pytest.raises(ValueError, match=f"`output` is .*, which holds {name}; expected .*or caption rows made")
    with refused, CaptionStore(tmp_path).writer():
        raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_store_keeps_what_lies_beside_its_rows(tmp_path: Path) -> None:
    with CaptionStore(tmp_path).writer() as writer:
        writer.add(row("a"))
    theirs, remains = tmp_path / ".mine.0-of-1.json.partial", tmp_path / ".1.0-of-1.jsonl.99.partial"
    theirs.write_text("mine")
    remains.write_text("of a killed process")
    with CaptionStore(tmp_path).writer():
        pass
    assert theirs.read_text() == "mine" and not remains.exists()
