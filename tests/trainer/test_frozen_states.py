"""The states of a frozen tower on disk: killed, resumed, damaged, of something else, too large, unreadable."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.trainer import HolisticCLIPTrainer, tower_states
from holistic_clip_hf.trainer.augmentation import Augmentation
from holistic_clip_hf.trainer.frozen_tower import FrozenTower
from holistic_clip_hf.trainer.tower_states import About, TowerStates

MakeTrainer = Callable[..., HolisticCLIPTrainer]
PROBES = {"vision": {"branch_type": "probe"}}
ROWS, WIDTH = 100, 3  # four batches
FACTS: dict[str, Any] = {"tower": "t", "images": "i", "rows": ROWS, "shape": (2, WIDTH), "dtype": "float16"}


def states_of(row: int) -> np.ndarray:
    return np.full((2, WIDTH), row, np.float32) + [[0.25], [0.5]]


def fill(states: TowerStates, most: int | None = None) -> None:
    """Write what is missing; two rows have no image. Stop behind so many batches."""
    with states.writer() as writer:
        for batch in states.unfinished()[:most]:
            writer.write(batch, ["broken" if row in (7, 80) else states_of(row) for row in batch])


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def states(tmp_path: Path) -> TowerStates:
    return TowerStates(tmp_path / "states", About(**FACTS))


def test_rows_are_as_they_were_written(states: TowerStates) -> None:
    fill(states)
    assert states.is_whole
    for row in (0, 6, 8, 99):
        found = states[row]
        assert isinstance(found, torch.Tensor) and found.dtype == torch.float16
        np.testing.assert_array_equal(found.numpy(), states_of(row).astype(np.float16))
    assert states[7] == "broken"
    raw = np.fromfile(states.folder / "states.bin", "<f2").reshape(ROWS, 2, WIDTH)
    np.testing.assert_array_equal(raw[42], states_of(42).astype(np.float16))


def test_a_run_that_was_cut_short_goes_on_to_the_same_bytes(states: TowerStates, tmp_path: Path) -> None:
    whole = TowerStates(tmp_path / "whole", About(**FACTS))
    fill(whole)
    fill(states, most=2)
    again = TowerStates(states.folder, About(**FACTS))
    assert not again.is_whole and [batch.start for batch in again.unfinished()] == [64, 96]
    fill(again)
    assert files_of(states.folder) == files_of(whole.folder)


def test_a_file_that_is_cut_is_filled_again(states: TowerStates, tmp_path: Path) -> None:
    fill(states)
    expected = files_of(states.folder)
    os.truncate(states.folder / "states.bin", 70 * 12)
    again = TowerStates(states.folder, About(**FACTS))
    assert [batch.start for batch in again.unfinished()] == [64, 96]
    fill(again)
    assert files_of(states.folder) == expected


def test_a_changed_byte_is_not_trained_on(states: TowerStates) -> None:
    fill(states)
    with open(states.folder / "states.bin", "r+b") as file:
        file.seek(50 * 12)
        file.write(b"\xff")
    with pytest.raises(ValueError, match=r"states.bin is damaged in row 50; expected .* Delete the folder"):
        states[50]
    states[49]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"tower": "u"}, "states of another tower or image processor"),
        ({"images": "j"}, "states of other images"),
        ({"dtype": "float32"}, "states of another type of number"),
        ({"precision": "bf16"}, "computed in another precision"),
        ({"view": "seed 1"}, "of another augmentation or seed"),
    ],
)
def test_states_of_something_else_are_refused(states: TowerStates, other: dict[str, Any], told: str) -> None:
    fill(states)
    states.require_same("states_folder", states.folder.parent)
    with pytest.raises(ValueError, match=rf"`states_folder` is .*{told}; expected those of this tower and corpus."):
        TowerStates(states.folder, About(**{**FACTS, **other})).require_same("states_folder", states.folder.parent)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"tower": "t"}', b"\xff"])
def test_a_damaged_description_is_refused(states: TowerStates, content: bytes) -> None:
    fill(states)
    (states.folder / "about.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"about.json is damaged; expected .* Name another folder, or delete it"):
        states.require_same("states_folder", states.folder.parent)


@pytest.mark.parametrize(("value", "remedy"), [(7e4, "`states_dtype` to float32"), (np.inf, "the tower's weights")])
def test_numbers_that_do_not_fit_are_refused(states: TowerStates, value: float, remedy: str) -> None:
    message = rf"The states of row 32 go up to (2.28e\+06|inf); expected numbers that float16 can hold. .*{remedy}"
    with pytest.raises(ValueError, match=message), states.writer() as writer:
        writer.write(range(32), [states_of(row) for row in range(32)])
        writer.write(range(32, 64), [states_of(row) * value for row in range(32, 64)])
    assert states.unfinished()[0].start == 32  # what came before stays


def undecoded_with(corpus: Dataset, spoil: Callable[[int, bytes], bytes]) -> Dataset:
    rows = corpus.cast_column("image", ImageFeature(decode=False))
    changed = [
        {**row, "image": {"path": None, "bytes": spoil(number, row["image"]["bytes"])}}
        for number, row in enumerate(rows)
    ]
    return Dataset.from_list(changed, features=rows.features).cast_column("image", ImageFeature())


def test_images_are_told_apart_by_their_contents(corpus: Dataset) -> None:
    same = undecoded_with(corpus, lambda number, data: data)
    flipped = undecoded_with(corpus, lambda number, data: data[:-1] + b"\0" if number == 5 else data)
    renamed = same.map(lambda row: {"image_id": row["image_id"].replace("red", "blau")})
    assert tower_states.hash_images(same) == tower_states.hash_images(corpus.cast_column("image", ImageFeature()))
    found = [tower_states.hash_images(rows) for rows in (same, flipped, renamed, same.select([1, 0, *range(2, 8)]))]
    assert len(set(found)) == 4


def test_another_tower_or_corpus_is_refused_at_the_door(
    make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"freeze_tower": True, "states_folder": str(tmp_path / "states")}
    make_trainer(PROBES, **options).train()
    make_trainer({"vision": {"branch_type": "probe", "num_branches": 1}, "perspectives": ["short"]}, **options).train()
    with pytest.raises(ValueError, match="states of another tower or image processor"):
        make_trainer({**PROBES, "seed": 1}, **options)
    with pytest.raises(ValueError, match="states of other images"):
        make_trainer(PROBES, train=corpus.select(range(7)), **options)
    with pytest.raises(ValueError, match="of another type of number"):
        make_trainer(PROBES, states_dtype="float32", **options)
    (tmp_path / "states" / "holiday.png").touch()
    with pytest.raises(ValueError, match="holds holiday.png; expected a new or empty folder, or states of a tower"):
        make_trainer(PROBES, **options)


def test_without_a_folder_states_lie_in_the_cache_by_what_they_are_of(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLISTIC_CLIP_CACHE", str(tmp_path / "cache"))
    for seed in (0, 1, 1):
        make_trainer({**PROBES, "seed": seed}, freeze_tower=True).train()
    assert len(list((tmp_path / "cache" / "states").iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model_options": {}}, "`branch_type` is 'cls'; expected 'probe'"),
        ({"states_dtype": "bfloat16"}, "`states_dtype` is 'bfloat16'; expected float16 or float32"),
        ({"augmented_views": 0}, "`augmented_views` is 0; expected 1 or more"),
        ({"augmented_views": 2}, "`augmented_views` is 2 without `augmentation`"),
        ({"augmentation": Augmentation(size=32)}, "`augmentation` is given with `freeze_tower`"),
        ({"freeze_tower": False, "augmented_views": 2}, "`augmented_views` is 2 without `freeze_tower`"),
        ({"freeze_tower": False, "states_folder": "x"}, "`states_folder` is x without `freeze_tower`"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_settings_that_contradict_are_refused(make_trainer: MakeTrainer, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make_trainer(**{"model_options": PROBES, "freeze_tower": True, **options})


def test_the_folder_of_the_output_is_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which is `output_dir` as well; expected a folder of its own"):
        make_trainer(PROBES, freeze_tower=True, states_folder=str(tmp_path))


def test_a_stream_is_refused(make_trainer: MakeTrainer, corpus: Dataset) -> None:
    with pytest.raises(ValueError, match="`train_dataset` is a IterableDataset; expected a `datasets.Dataset`"):
        make_trainer(PROBES, train=corpus.to_iterable_dataset(), freeze_tower=True)


def test_a_disk_that_is_too_small_is_refused_at_the_door(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1_000}))
    message = "0 MB free; the states of the tower needs about 0 MB. Free space, or name a `states_folder` on"
    with pytest.raises(OSError, match=message):
        make_trainer(PROBES, freeze_tower=True, states_folder=str(tmp_path / "states"))


def test_other_weights_loaded_later_are_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    options: dict[str, Any] = {"freeze_tower": True, "states_folder": str(tmp_path / "states")}
    trainer = make_trainer(PROBES, **options)
    trainer.train()
    trainer.model.vision_model.head.probe.data += 1.0
    trainer.train()
    trainer.model.vision_model.encoder.layers[0].mlp.fc1.bias.data += 1.0
    with pytest.raises(ValueError, match="The tower has other weights than the one whose states are kept"):
        trainer.train()


def test_unreadable_images_are_left_out_as_on_pixels(
    make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path
) -> None:
    broken = undecoded_with(corpus, lambda number, data: data[:60] if number in (0, 5) else data)
    options: dict[str, Any] = {"train": broken, "train_sampling_strategy": "sequential", "optim": "sgd"}
    frozen = ["vision_model.embeddings.*", "vision_model.pre_layrnorm.*", "vision_model.encoder.*"]
    expected = make_trainer(PROBES, frozen=frozen, **options)
    expected.train()
    found = make_trainer(
        PROBES, freeze_tower=True, states_folder=str(tmp_path / "states"), states_dtype="float32", **options
    )
    found.train()
    assert len(expected.left_out.reasons) == 2 and found.left_out.reasons == expected.left_out.reasons
    for name, weight in expected.model.named_parameters():
        torch.testing.assert_close(found.model.get_parameter(name), weight, rtol=1e-6, atol=1e-6)


CHILD = """
import sys, time
from pathlib import Path
from datasets import load_from_disk
from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.trainer import HolisticCLIPTrainer, HolisticCLIPTrainingArguments, tower_states
from holistic_clip_hf.trainer.frozen_tower import FrozenTower

folder, states, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
tower_states.SECONDS_OF_LOSS = 0.0
encode = FrozenTower._encode


def slowly(self, pixel_values):
    time.sleep(seconds * (len(pixel_values) > 1))
    return encode(self, pixel_values)


FrozenTower._encode = slowly
args = HolisticCLIPTrainingArguments(
    str(folder / "run"), freeze_tower=True, states_folder=states, max_steps=1, per_device_train_batch_size=4,
    warmup_steps=0, save_strategy="no", use_cpu=True, disable_tqdm=True,
)
model = HolisticCLIPModel.from_pretrained(folder / "model")
processor = HolisticCLIPProcessor.from_pretrained(folder / "processor")
HolisticCLIPTrainer(
    model, args, processing_class=processor, train_dataset=load_from_disk(str(folder / "corpus"))
).train()
"""


@pytest.fixture
def world(
    make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, corpus: Dataset, tmp_path: Path
) -> Path:
    """A model, its processor and 100 rows, one of which is broken, on disk."""
    make_model(**PROBES, perspectives=["short", "colour", "shape"]).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "processor")
    rows = corpus.select([number % 8 for number in range(ROWS)])
    undecoded_with(rows, lambda number, data: data[:60] if number == 7 else data).save_to_disk(tmp_path / "corpus")
    return tmp_path


def start(world: Path, states: str, seconds: float) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(world), str(world / states), str(seconds)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finished_rows(folder: Path) -> int:
    path = folder / "train" / "rows.bin"
    return int(np.count_nonzero(np.fromfile(path, tower_states._ROW)["status"])) if path.is_file() else 0


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on_to_the_same_bytes(world: Path, signum: int) -> None:
    whole = start(world, "whole", 0.0)
    told = whole.communicate(timeout=300)[1]
    assert whole.returncode == 0 and "states of 100 images, 17 x 32 numbers of float16 each, 0.1 MB in" in told
    killed, deadline = start(world, "killed", 1.0), time.monotonic() + 120
    while not finished_rows(world / "killed") and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signum)
    said = killed.communicate(timeout=120)[1]
    assert killed.returncode != 0 and 0 < finished_rows(world / "killed") < ROWS
    if signum == signal.SIGTERM:
        assert "of 100 images, whose states are kept in" in said
    resumed = start(world, "killed", 0.0)
    resumed.communicate(timeout=300)
    assert resumed.returncode == 0
    assert files_of(world / "killed" / "train") == files_of(world / "whole" / "train")
    assert list(json.loads((world / "killed" / "train" / "left_out.json").read_text())) == ["7"]


def test_towers_of_pixels_alone_are_asked_what_comes_out(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(PROBES, freeze_tower=True, states_folder=str(tmp_path / "states"))
    tower = trainer.frozen_tower
    assert isinstance(tower, FrozenTower) and tower.shape == (17, 32)
