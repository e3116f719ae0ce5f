"""Values of recipes: read as they are meant, and refused by their key before anything is made."""

import logging
import re
import tracemalloc
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset, Value
from torch.utils.data import BatchSampler

from holistic_clip_hf.cli.main import main
from holistic_clip_hf.corpus.build import build_corpus
from holistic_clip_hf.storage import read_yaml
from holistic_clip_hf.trainer.arguments import require_enough_rows
from holistic_clip_hf.trainer.recipes import load_recipe

ROOT = Path(__file__).parents[2]
EMOJI = yaml.safe_load((ROOT / "training/recipes/emoji.yaml").read_text())
ROWS = {"train": 5, "test": 3}


def write(folder: Path, **training: Any) -> Path:
    """Write a recipe that a CPU trains in a second."""
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    few = {"seed": 0, "max_steps": 1, "warmup_steps": 0, "logging_steps": 1, "eval_strategy": "epoch", "use_cpu": True}
    content = {
        "corpus": str(folder / "corpus"),
        "split_column": "split",
        "image_size": 32,
        "tokenizer": {"vocab_size": 560, "max_length": 16},
        "model": {"projection_dim": 16, "text_config": tower, "vision_config": {**tower, "patch_size": 8}},
        "training": {**few, "per_device_train_batch_size": 4, "dataloader_num_workers": 0, **training},
        "runs": {"one": {"perspectives": ["short"], "slots": ["short"]}},
    }
    (folder / "few.yaml").write_text(yaml.safe_dump(content))
    return folder / "few.yaml"


@pytest.fixture
def few_photos(tmp_path: Path, corpus: Dataset) -> Path:
    """A folder with a corpus of few rows, none of them for validation."""
    splits = [split for split, count in ROWS.items() for _ in range(count)]
    rows = [{**row, "split": split} for row, split in zip(corpus, splits, strict=False)]
    features = corpus.features.copy()
    features["split"] = Value("string")
    build_corpus(tmp_path / "corpus", {"all": lambda: rows}, features, fingerprint="1", counted=("split",))
    return tmp_path


def train(folder: Path, recipe: Path) -> None:
    main(["train", "--recipe", str(recipe), "--run", "one", "--output-dir", str(folder / "runs")])


@pytest.mark.parametrize("spelled", ["1e-5", "1E-5", "1.0e-5", "0.00001", "+1e-05"])
def test_a_number_is_read_as_the_number_it_is(spelled: str, tmp_path: Path) -> None:
    text = yaml.safe_dump(EMOJI).replace("learning_rate: 0.001", f"learning_rate: {spelled}")
    (tmp_path / "mine.yaml").write_text(text)
    assert load_recipe(tmp_path / "mine.yaml").training["learning_rate"] == 0.00001


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"learning_rate": "fast"}}, "training: `learning_rate` is 'fast'; expected a number. Correct"),
        ({"training": {"seed": "zero"}}, "training: `seed` is 'zero'; expected a whole number"),
        ({"training": {"save_strategy": False}}, "`save_strategy` is False; expected a text. Correct it. Put it betw"),
        ({"training": {"learning_rat": 1}}, "training: unknown keys learning_rat. Did you mean learning_rate?"),
        (
            {"training": {"fused_weight": 1}},
            "training: `fused_weight` does not belong here; expected it under `model`",
        ),
        ({"model": {"learning_rate": 1}}, "model: `learning_rate` does not belong here; expected it under `training`"),
        ({"max_steps": 1}, "mine.yaml: `max_steps` does not belong here; expected it under `training`"),
        ({"training": {"push_to_hub": True}}, "`push_to_hub` is set without `hub_model_id`"),
        ({"runs": {"one": {"slots": "short"}}}, "runs, one: `slots` is 'short'; expected a list, each a text"),
        ({"image_size": "big"}, "`image_size` is 'big'; expected a whole number"),
        ({"augmentation": {"scale": 0.5}}, "augmentation: `scale` is 0.5; expected a list of 2, each a number"),
        ({"tokenizer": {"max_length": "long"}}, "tokenizer: `max_length` is 'long'; expected a whole number"),
        ({"model": {"text_config": 7}}, "model: `text_config` is 7; expected keys and values"),
    ],
)
def test_a_wrong_value_is_named_by_its_key(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    content = {key: {**value} if isinstance(value, dict) else value for key, value in EMOJI.items()}
    for key, value in change.items():
        if key == "runs":
            value = {"one": {"perspectives": ["short"], **value["one"]}}
        content[key] = {**content[key], **value} if isinstance(content.get(key), dict) and key != "runs" else value
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        load_recipe(tmp_path / "mine.yaml")
    assert len(str(refused.value)) < 400 + len(str(tmp_path))


def laughs(depth: int, of: str) -> str:
    """A list of lists of lists ... in which everything is nine times the one before."""
    levels = [f"a0: &a0 [{of}]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, depth)]
    return "\n".join([*levels, f"corpus: *a{depth - 1}"])


BOMBS = {
    "a billion laughs": (laughs(10, "lol"), "repeats too much by aliases"),
    "of long texts": (laughs(6, "x" * 10_000), "repeats too much by aliases"),
    "few laughs": (laughs(4, "lol"), "unknown keys a0, a1, a2, a3"),
    "an alias in itself": ("corpus: &a [*a]", "line 1 is not valid YAML (an alias stands in what it names)"),
    "nested": ("corpus: " + "[" * 20_000, "is not valid YAML (it is nested more than 50 deep)"),
    "a long value": (f"corpus: {'x' * 900_000}\nimage_size: {'y' * 90_000}", "missing keys"),
    "a long key": (f"? {'k' * 900_000}\n: 1", "unknown keys kkk"),
    "many keys": ("\n".join(f"k{n}: 1" for n in range(20_000)), "and 19980 more"),
    "a large file": ("# " + "x" * 1_000_000, "has 1,000,002 bytes; expected at most 1,000,000"),
    "digits": (f"image_size: {'9' * 5_000}", "has a value that cannot be read"),
    "a date": ("corpus: 2026-13-45", "has a value that cannot be read"),
    "a key twice": (
        "corpus: a\nseed: 1\ncorpus: b",
        "line 3 is not valid YAML (the key 'corpus' stands in line 1",
    ),
    "twice inside": ("training:\n  seed: 1\n  seed: 2", "line 3 is not valid YAML (the key 'seed' stands in line 2"),
    "an unknown tag": ("corpus: !!python/object/apply:os.system ['true']", "is not valid YAML (could not determine"),
}


@pytest.mark.parametrize(("text", "message"), BOMBS.values(), ids=BOMBS)
def test_a_hostile_recipe_is_refused_in_few_words_and_little_memory(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=re.escape(message)) as refused:
            load_recipe(tmp_path / "mine.yaml")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(str(refused.value)) < 2_000 + len(str(tmp_path))
    assert peak < 150_000_000


def test_aliases_and_merges_stay(tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n")
    assert read_yaml(tmp_path / "some.yaml") == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}


def test_a_long_value_of_a_wrong_type_is_told_in_few_words(tmp_path: Path) -> None:
    content = {**EMOJI, "image_size": "x" * 500_000}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"`image_size` is 'x+\.\.\.x+'; expected a whole number") as refused:
        load_recipe(tmp_path / "mine.yaml")
    assert len(str(refused.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"per_device_train_batch_size": 32}, "`per_device_train_batch_size` is 32, .* 5 rows; expected at most 5"),
        ({"per_device_train_batch_size": -8}, "`per_device_train_batch_size` is -8, in 1 process"),
        ({"max_steps": -1, "num_train_epochs": -1}, "`num_train_epochs` is -1; expected above 0"),
        ({"max_steps": -1, "num_train_epochs": 0}, "`num_train_epochs` is 0; expected above 0"),
        ({"learning_rate": -1.0}, "`learning_rate` is -1.0; expected 0 or more"),
        ({"report_to": "wandb"}, "`report_to` is wandb, which is not installed"),
    ],
)
def test_what_would_train_nothing_is_refused_and_leaves_nothing(
    training: dict[str, Any],
    message: str,
    few_photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("holistic_clip_hf.trainer.arguments.get_available_reporting_integrations", lambda: [])
    with pytest.raises(SystemExit) as ended:
        train(few_photos, write(few_photos, **training))
    said = capsys.readouterr().err
    assert ended.value.code == 2 and re.search(message, said) and "Traceback" not in said, said
    assert not (few_photos / "runs").exists()


def test_a_corpus_without_validation_trains_without_evaluation(
    few_photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "holistic_clip_hf"):
        train(few_photos, write(few_photos, load_best_model_at_end=True, save_strategy="epoch"))
    assert (few_photos / "runs/few/one/model.safetensors").is_file()
    assert "Training goes without evaluation. No row of" in caplog.text and "--validation 0.2" in caplog.text


def test_warm_up_and_logs_that_outlast_the_training_are_told(
    few_photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "holistic_clip_hf"):
        train(few_photos, write(few_photos, max_steps=-1, num_train_epochs=3, warmup_steps=3, logging_steps=4))
    assert "`warmup_steps` is 3 of 3 steps" in caplog.text  # 5 rows make one batch of 4 in each of 3 epochs
    assert "`logging_steps` is 4 of 3 steps" in caplog.text


def test_a_batch_on_every_rank_is_what_accelerate_deals() -> None:
    for rows, size, ranks, drop in product(range(1, 13), (2, 3), (1, 2, 3), (True, False)):
        args: Any = SimpleNamespace(dataloader_drop_last=drop, per_device_train_batch_size=size, world_size=ranks)
        dealt = list(BatchSamplerShard(BatchSampler(range(rows), size, drop_last=drop), ranks, ranks - 1))
        try:
            require_enough_rows([None] * rows, args)
        except ValueError as error:
            assert not dealt and f" has {rows} rows" in str(error)
        else:
            assert dealt, (rows, size, ranks)


def test_rows_of_a_stream_are_not_counted(corpus: Dataset) -> None:
    args: Any = SimpleNamespace(dataloader_drop_last=True, per_device_train_batch_size=99, world_size=2)
    require_enough_rows(corpus.to_iterable_dataset(), args)
    with pytest.raises(ValueError, match="is 99 in each of 2 processes, .* 8 rows; expected at most 4, or no step"):
        require_enough_rows(corpus, args)
    with pytest.raises(ValueError, match="has 1 rows; expected more rows, or no step would be taken. Add images."):
        require_enough_rows(corpus.select([0]), args)
