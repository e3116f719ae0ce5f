"""Who answered: two captioners of one name are two, one in two places is one, and older rows still count."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from caption_server import CaptionServer, serving
from holistic_clip_hf.captioning.captioner import Backend, caption_images
from holistic_clip_hf.captioning.local_backend import LocalBackend
from holistic_clip_hf.captioning.perspectives import Answer, Perspective
from holistic_clip_hf.captioning.remote_backend import RemoteBackend
from holistic_clip_hf.captioning.store import CaptionRow, CaptionStore
from holistic_clip_hf.captioning.weights import hash_weights, version_of
from holistic_clip_hf.images.folders import ImageFolder
from tiny_captioner import make_tiny_captioner

ANY = Answer(form="phrase", language=None)
ASKED = [Perspective("scene", "Describe it.", 4, answer=ANY), Perspective("style", "Its style?", 4, answer=ANY)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16), (80 * number, 90, 10)).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_captioner(tmp_path_factory.mktemp("a") / "checkpoint-1000")


def trained(folder: Path, target: Path, name: str = "") -> Path:
    """The same captioner with other numbers, in all tensors or in one."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    for key in [name] if name else tensors:
        tensors[key] = tensors[key] + 0.25 * torch.randn(tensors[key].shape)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def caption(photos: Path, backend: Backend) -> tuple[int, int]:
    """Rows that were kept, and rows that were added."""
    report = caption_images(ImageFolder(photos), ASKED, backend, photos.parent / "rows")
    return report.kept, report.statuses.total()


def local(folder: Path) -> LocalBackend:
    return LocalBackend(str(folder), batch_size=2)


def rows(photos: Path) -> list[CaptionRow]:
    return list(CaptionStore(photos.parent / "rows").rows())


def test_two_captioners_in_folders_of_one_name_are_two(first: Path, photos: Path, tmp_path: Path) -> None:
    second = trained(first, tmp_path / "b" / "checkpoint-1000")
    assert caption(photos, local(first)) == (0, 6)
    assert caption(photos, local(second)) == (0, 6)
    assert caption(photos, local(first)) == caption(photos, local(second)) == (6, 0)
    found = rows(photos)
    assert len(found) == 12 and {row.captioner for row in found} == {"checkpoint-1000"}
    assert len({row.weights for row in found}) == 2
    said = {row.weights: [each.caption for each in found if each.weights == row.weights] for row in found}
    assert len({tuple(captions) for captions in said.values()}) == 2  # and both are kept


def test_one_captioner_in_two_places_is_one(first: Path, photos: Path, tmp_path: Path) -> None:
    assert caption(photos, local(first)) == (0, 6)
    moved = Path(shutil.copytree(first, tmp_path / "elsewhere" / "checkpoint-1000"))
    (moved / "README.md").write_text("A word about it.")
    assert caption(photos, local(moved)) == (6, 0)


def test_files_do_not_count_but_every_tensor_does(first: Path, tmp_path: Path) -> None:
    whole = hash_weights(first)
    model = AutoModelForImageTextToText.from_pretrained(first)
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 3
    assert hash_weights(tmp_path / "parts") == whole and len(whole) == 16
    (tmp_path / "parts" / "consolidated.safetensors").write_bytes(b"\0")  # which transformers does not read
    assert hash_weights(tmp_path / "parts") == whole
    names = list(load_file(first / "model.safetensors"))
    changed = {hash_weights(trained(first, tmp_path / str(place), name)) for place, name in enumerate(names)}
    assert len(changed | {whole}) == len(names) + 1
    assert version_of("no/such-model", None) == ("", "") and hash_weights(tmp_path) == ""


def test_a_part_of_a_large_tensor_counts_wherever_it_is(tmp_path: Path) -> None:
    """Such as new words at the end of a vocabulary: one row in twenty."""
    for number in range(21):
        (tmp_path / str(number)).mkdir()
        weights = torch.ones(1_000, 101)
        weights[50 * number : 50 * number + 50] += 0.5  # none of the last
        save_file({"weight": weights}, tmp_path / str(number) / "model.safetensors")
    assert len({hash_weights(tmp_path / str(number)) for number in range(21)}) == 21


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_large_tensors_are_told_apart_by_a_share_of_their_numbers(kind: torch.dtype, tmp_path: Path) -> None:
    """Of bfloat16, a short training moves one number in seventeen."""
    generator = torch.Generator().manual_seed(0)
    for number, share in enumerate([0.0, 0.06, 0.06]):
        folder = tmp_path / str(number)
        folder.mkdir()
        weights = torch.ones(999, 1_001)
        weights[torch.rand(weights.shape, generator=generator) < share] += 0.5
        save_file({"weight": weights.to(kind)}, folder / "model.safetensors")
    assert len({hash_weights(tmp_path / str(number)) for number in range(3)}) == 3


SCRIPT = """
import sys
from holistic_clip_hf.captioning.captioner import caption_images
from holistic_clip_hf.captioning.local_backend import LocalBackend
from holistic_clip_hf.captioning.perspectives import load_perspectives
from holistic_clip_hf.images.folders import ImageFolder
photos, rows, *revisions = sys.argv[1:]
for revision in revisions:
    backend = LocalBackend("me/tiny", revision=revision, batch_size=2)
    report = caption_images(ImageFolder(photos), load_perspectives(names=["short"]), backend, rows)
    print(backend.captioner, backend.revision, report.kept, report.statuses.total())
"""


def test_revisions_of_one_name_are_told_apart_by_their_weights(first: Path, photos: Path, tmp_path: Path) -> None:
    """Of three commits, the second is another training, and the third has the first one's weights and a new card."""
    commits = {letter: letter * 40 for letter in "abc"}
    snapshots = tmp_path / "hub" / "models--me--tiny" / "snapshots"
    shutil.copytree(first, snapshots / commits["a"])
    trained(first, snapshots / commits["b"])
    shutil.copytree(first, snapshots / commits["c"])
    (snapshots / commits["c"] / "README.md").write_text("A word about it.")
    command = [sys.executable, "-c", SCRIPT, photos, tmp_path / "rows", *commits.values()]
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"me/tiny {commits['a']} 0 3",
        f"me/tiny {commits['b']} 0 3",
        f"me/tiny {commits['c']} 3 0",
    ]


def make_old(folder: Path, **fields: str) -> None:
    """Rows as they were written before they had weights."""
    for path in folder.glob("*.jsonl"):
        lines = [{**json.loads(line), **fields} for line in path.read_bytes().splitlines()]
        for line in lines:
            del line["weights"]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_store_of_an_earlier_version_goes_on(first: Path, photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photos / "2.png").rename(photos.parent / "2.png")
    assert caption(photos, local(first)) == (0, 4)
    make_old(photos.parent / "rows")
    (photos.parent / "2.png").rename(photos / "2.png")
    with caplog.at_level(logging.INFO):
        assert caption(photos, local(first)) == (4, 2)
    told = "checkpoint-1000: 4 rows do not say which weights answered; they are kept."
    assert caplog.messages.count(told) == 1
    found = rows(photos)
    assert len(found) == 6 and sorted(row.weights for row in found)[:4] == [""] * 4
    assert caption(photos, local(first)) == (6, 0)


def test_rows_of_another_commit_are_not_taken_for_this_one(
    first: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = local(first)
    caption(photos, backend)
    make_old(photos.parent / "rows", revision="a" * 40)
    backend.revision = "b" * 40
    with caplog.at_level(logging.INFO):
        assert caption(photos, backend) == (0, 6)
    assert "checkpoint-1000: 6 rows are of the revision aaaaaaaaaaaa; this one is asked beside it." in caplog.messages
    assert len(rows(photos)) == 12


def test_failures_of_an_earlier_version_are_settled_by_an_answer(first: Path, photos: Path) -> None:
    backend = local(first)
    caption(photos, backend)
    make_old(photos.parent / "rows", status="failed", caption="", error="no memory")
    assert caption(photos, backend) == (6, 0)
    report = caption_images(ImageFolder(photos), ASKED, backend, photos.parent / "rows", retry_failed=True)
    assert (report.kept, report.statuses.total()) == (0, 6)
    assert len(rows(photos)) == 6 and {row.status for row in rows(photos)} <= {"ok", "cut", "unfinished"}


def test_what_a_captioner_is_told_beside_the_question_is_part_of_it(first: Path, photos: Path) -> None:
    """After a run in which all answers were thinking, the same with thinking switched off asks again."""
    assert caption(photos, local(first)) == (0, 6)
    quiet = LocalBackend(str(first), batch_size=2, chat_template_kwargs={"enable_thinking": False})
    assert caption(photos, quiet) == (0, 6)
    assert caption(photos, quiet) == caption(photos, local(first)) == (6, 0)
    with serving(CaptionServer()) as server:
        for extra in ({}, {"top_k": 1}):
            backend = RemoteBackend(server.url, "m", extra_body=extra)
            assert (caption(photos, backend), caption(photos, backend)) == ((0, 6), (6, 0))


def test_rows_of_a_server_are_as_they_were(photos: Path) -> None:
    """A server does not tell its weights: whoever has this name is the same."""
    with serving(CaptionServer()) as server:
        assert caption(photos, RemoteBackend(server.url, "m")) == (0, 6)
        make_old(photos.parent / "rows")
        assert caption(photos, RemoteBackend(server.url, "m")) == (6, 0)
    assert {row.weights for row in rows(photos)} == {""}
