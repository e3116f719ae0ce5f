"""Corpora built in shares: the same bytes as without, whoever was killed, and locks that keep writers apart."""

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_corpus_from_sources import FACTS, Squares, caption

from holistic_clip_hf.corpus.build import load_corpus, read_manifest, require_corpus_folder
from holistic_clip_hf.corpus.from_sources import build_from_sources, build_share
from holistic_clip_hf.corpus.plan import BuildSettings
from holistic_clip_hf.images.sources import Item, Skipped
from holistic_clip_hf.locks import InUseError
from holistic_clip_hf.sharding import Shard, hold_shard, hold_whole

SETTINGS = BuildSettings(validation=0.2, test=0.2, rows_per_shard=4)
IMAGES, SHARES = 50, 3


class Dying(Squares):
    """Squares whose reading ends the process at one of them, as `kill -9` does."""

    def read(self, place: str) -> bytes:
        if place == "30":
            os._exit(9)
        return super().read(place)


def squares(kind: type[Squares] = Squares) -> Squares:
    """Fifty, of which one has no caption, one is not an image, and one is listed as left out."""
    changes: dict[int, Item | Skipped] = {
        5: Item("s5", "5", "1", []),
        6: Skipped("s6", "not listed"),
        7: Item("s7", "7", "1", [caption("twice"), caption("twice again")]),
    }
    return kind(IMAGES, changes, s9=b"<html>")


def build(directory: Path, source: Squares) -> None:
    build_from_sources(directory, [source], SETTINGS, facts=FACTS, diversity=False)


def share(directory: Path, index: int, source: Squares) -> tuple[int, int]:
    return build_share(directory, [source], SETTINGS, shard=Shard(index, SHARES))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files(directory)}


def files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


def test_shares_make_the_bytes_of_a_build_without(tmp_path: Path) -> None:
    build(tmp_path / "whole", squares())
    written = [share(tmp_path / "shared", index, squares()) for index in (2, 0, 1)]
    names = list(read_manifest(tmp_path / "whole")["shards"])
    # Dealt in turn: file 0 to share 0, file 1 to share 1, file 2 to share 2, file 3 to share 0.
    assert written == [(len(names[index::SHARES]), len(names)) for index in (2, 0, 1)] and len(names) > 2 * SHARES
    with pytest.raises(ValueError, match="half-built corpus"):
        read_manifest(tmp_path / "shared")
    before = {path: path.stat() for path in files(tmp_path / "shared" / "data")}
    build(tmp_path / "shared", squares())
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")
    for path, found in before.items():
        after = path.stat()
        assert (after.st_ino, after.st_mtime_ns) == (found.st_ino, found.st_mtime_ns), "it was written again"


def test_groups_of_near_duplicates_need_all_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`near_duplicates` is 'group'; expected 'report' or 'ignore' for a share"):
        settings = BuildSettings(near_duplicates="group")
        build_share(tmp_path / "shared", [squares()], settings, shard=Shard(0, SHARES))
    assert not (tmp_path / "shared").exists()


def test_files_of_other_machines_may_be_copied_together(tmp_path: Path) -> None:
    build(tmp_path / "whole", squares())
    (tmp_path / "all" / "data").mkdir(parents=True)
    for index in range(SHARES):
        share(tmp_path / str(index), index, squares())
        for path in (tmp_path / str(index) / "data").iterdir():
            path.rename(tmp_path / "all" / "data" / path.name)
    build(tmp_path / "all", squares())
    assert contents(tmp_path / "all") == contents(tmp_path / "whole")


def test_a_share_that_was_killed_goes_on(tmp_path: Path) -> None:
    build(tmp_path / "whole", squares())
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=share, args=(tmp_path / "shared", i, squares(Dying))) for i in range(SHARES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(process.exitcode or 0 for process in processes) == [0, 0, 9]
    [killed] = [index for index, process in enumerate(processes) if process.exitcode]
    share(tmp_path / "shared", killed, squares())
    build(tmp_path / "shared", squares())
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


def test_what_no_share_wrote_is_written_at_the_end(tmp_path: Path) -> None:
    build(tmp_path / "whole", squares())
    share(tmp_path / "shared", 1, squares())
    build(tmp_path / "shared", squares())
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


def test_an_earlier_corpus_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    build(tmp_path, Squares(10))
    before = load_corpus(tmp_path)["image_id"]
    for index in range(SHARES):
        share(tmp_path, index, Squares(IMAGES))
        assert load_corpus(tmp_path)["image_id"] == before
    build(tmp_path, Squares(IMAGES))
    assert len(load_corpus(tmp_path)) == IMAGES
    assert len([*(tmp_path / "data").iterdir()]) == len(read_manifest(tmp_path)["shards"])


def test_a_share_has_one_writer_and_the_whole_waits_for_all(tmp_path: Path) -> None:
    with hold_shard(tmp_path, Shard(0, 2)), hold_shard(tmp_path, Shard(1, 2)):
        with pytest.raises(InUseError, match=f"process {os.getpid()}"), hold_shard(tmp_path, Shard(1, 2)):
            pass
        with pytest.raises(InUseError), hold_whole(tmp_path, wait=0):
            pass
        require_corpus_folder(tmp_path)  # its locks are not somebody else's files
    with hold_whole(tmp_path, wait=0):
        pass
    assert [path.name for path in files(tmp_path)] == [".lock"]
