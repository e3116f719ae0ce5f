"""Images and captions that cannot be used: nothing of them is trained or measured; they are counted, named, listed."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from torch import Tensor
from transformers import TrainerCallback

from holistic_clip_hf import HolisticCLIPModel
from holistic_clip_hf.trainer import HolisticCLIPTrainer
from holistic_clip_hf.trainer.callbacks import LeftOutRows
from holistic_clip_hf.trainer.recipes import caption_texts

MakeTrainer = Callable[..., HolisticCLIPTrainer]


def weights(model: HolisticCLIPModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def damaged(corpus: Dataset, *places: int) -> Dataset:
    """The corpus with so many images cut short."""

    def cut(row: dict[str, Any], index: int) -> dict[str, Any]:
        image = row["image"]
        return {"image": {"path": None, "bytes": image["bytes"][:80] if index in places else image["bytes"]}}

    undecoded = corpus.cast_column("image", ImageFeature(decode=False)).map(cut, with_indices=True)
    return undecoded.cast_column("image", ImageFeature())


@pytest.mark.parametrize("options", [{}, {"gradient_cache_size": 2}, {"dataloader_num_workers": 1}], ids=str)
def test_damaged_images_train_nothing(
    make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path, options: dict[str, Any]
) -> None:
    """The weights are those that rows without captions give; the penalty aside, which sees their images."""
    model, sgd = {"diversity_weight": 0.0}, {"optim": "sgd", "learning_rate": 0.1}
    plain = corpus.map(
        lambda row, index: {"captions": row["captions"] if index not in (1, 6) else []}, with_indices=True
    )
    whole = make_trainer(model, train=plain, **sgd)
    broken = make_trainer(model, train=damaged(corpus, 1, 6), **sgd, **options)
    start = weights(whole.model)
    whole.train()
    assert not (tmp_path / "left_out.json").exists()
    broken.train()
    found, expected = weights(broken.model), weights(whole.model)
    assert (expected["visual_projection.weight"] - start["visual_projection.weight"]).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert [entry["left_out"] for entry in whole.state.log_history if "loss" in entry] == [0, 0]
    assert broken.state.log_history[1]["left_out"] == 2
    listed = json.loads((tmp_path / "left_out.json").read_text())
    assert listed.keys() == {corpus["image_id"][index] for index in (1, 6)}
    assert all("OSError" in reason for reason in listed.values())


def blanked(corpus: Dataset, *places: int) -> Dataset:
    """The corpus with the first caption of so many images blank."""

    def blank(row: dict[str, Any], index: int) -> dict[str, Any]:
        first, *others = row["captions"]
        return {"captions": [{**first, "text": "&nbsp;"} if index in places else first, *others]}

    return corpus.map(blank, with_indices=True)


@pytest.mark.parametrize("options", [{}, {"gradient_cache_size": 2}, {"dataloader_num_workers": 1}], ids=str)
def test_blank_captions_train_nothing_and_are_listed(
    make_trainer: MakeTrainer,
    corpus: Dataset,
    tmp_path: Path,
    options: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The weights and the evaluation are those of a corpus without them."""
    plain = corpus.map(lambda row, index: {"captions": row["captions"][index in (1, 6) :]}, with_indices=True)
    sgd: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1}
    whole = make_trainer(train=plain, evaluation=plain, **sgd)
    blank = make_trainer(train=blanked(corpus, 1, 6), evaluation=blanked(corpus, 1, 6), **sgd, **options)
    whole.train()
    assert not (tmp_path / "left_out.json").exists()
    blank.train()
    torch.testing.assert_close(weights(blank.model), weights(whole.model), rtol=1e-5, atol=1e-6)
    names = {f"{corpus['image_id'][index]}, short" for index in (1, 6)}
    assert json.loads((tmp_path / "left_out.json").read_text()) == dict.fromkeys(
        sorted(names), "its text is blank: '&nbsp;'"
    )
    assert blank.state.log_history[1]["left_out"] == 2
    assert f"Images and captions left out: 2. {tmp_path / 'left_out.json'} lists them." in caplog.text
    expected, found = whole.evaluate(), blank.evaluate()
    same = [name for name in expected if name == "eval_loss" or "_recall@" in name]
    assert {name: found[name] for name in same} == pytest.approx({name: expected[name] for name in same}, abs=1e-6)


def test_a_resumed_run_takes_up_the_list_of_0_1_0(make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path) -> None:
    make_trainer(max_steps=1, train=corpus, save_strategy="steps", save_steps=1).train()
    (tmp_path / "unreadable_images.json").write_text(json.dumps({"old": "OSError"}))
    make_trainer(max_steps=2, train=corpus).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert json.loads((tmp_path / "left_out.json").read_text()) == {"old": "OSError"}


def test_damaged_images_are_named_once_and_listed_at_every_save(
    make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"train": damaged(corpus, 1, 6), "save_strategy": "steps", "save_steps": 2}
    path, at_saves = tmp_path / "left_out.json", []

    class Read(TrainerCallback):
        def on_save(self, *args: Any, **kwargs: Any) -> None:
            at_saves.append(json.loads(path.read_text()))

    trainer = make_trainer(max_steps=4, **options)
    trainer.add_callback(Read())
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert [len(listed) for listed in at_saves] == [2, 2]
    for index in (1, 6):
        assert caplog.text.count(f"{corpus['image_id'][index]} is left out: OSError: ") == 1
    path.write_text(json.dumps({"earlier": "it was met before", corpus["image_id"][1]: "OSError"}))
    resumed = make_trainer(max_steps=5, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.state.log_history[-2]["left_out"] >= 2
    assert "earlier" in json.loads(path.read_text())
    make_trainer(max_steps=1, train=corpus).train()
    assert json.loads(path.read_text()) == {}, "a new run begins a new list"


def test_only_the_first_damaged_images_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = LeftOutRows(tmp_path)
    for number in range(30):
        images.note({f"{number}": "too small"})
    assert images.count() == 30
    assert [record.getMessage().split()[0] for record in caplog.records] == [str(number) for number in range(20)]
    assert "More are only counted" in caplog.records[-1].getMessage()
    images.save()
    assert len(json.loads((tmp_path / "left_out.json").read_text())) == 30


@pytest.mark.parametrize("reason", ["captionless", "damaged"])
def test_a_last_evaluation_batch_of_which_nothing_counts(
    make_trainer: MakeTrainer, corpus: Dataset, reason: str
) -> None:
    """Five rows in batches of four: the fifth is alone, and brings nothing."""
    five = corpus.select(range(5))
    if reason == "damaged":
        five = damaged(five, 4)
    else:
        five = five.map(lambda row, i: {"captions": row["captions"] if i != 4 else []}, with_indices=True)
    expected, found = make_trainer().evaluate(corpus.select(range(4))), make_trainer().evaluate(five)
    same = [name for name in expected if name == "eval_loss" or "_recall@" in name]
    assert {name: found[name] for name in same} == pytest.approx({name: expected[name] for name in same}, abs=1e-6)


def test_evaluation_does_not_count_damaged_images(make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path) -> None:
    """The recall of the others, without candidates that cannot be seen."""
    captionless = corpus.map(lambda row, i: {"captions": row["captions"] if i != 2 else []}, with_indices=True)
    expected = make_trainer(evaluation=captionless).evaluate()
    found = make_trainer(evaluation=damaged(corpus, 2)).evaluate()
    recalls = [name for name in expected if "_recall@" in name]
    assert len(recalls) == 24
    assert {name: found[name] for name in recalls} == {name: expected[name] for name in recalls}
    listed = {corpus["image_id"][2]}
    assert json.loads((tmp_path / "left_out.json").read_text()).keys() == listed
    for measure in (make_trainer().evaluate, make_trainer().predict):
        (tmp_path / "left_out.json").unlink()
        measure(damaged(corpus, 2))
        assert json.loads((tmp_path / "left_out.json").read_text()).keys() == listed


def test_held_out_loss_is_that_of_the_readable_images(make_trainer: MakeTrainer, corpus: Dataset) -> None:
    """The penalty included, which once saw the image that stands in."""
    options = {"diversity_threshold": -1.0, "diversity_weight": 3.0}
    four = corpus.select([0, 1, 2, 4])
    expected = make_trainer(options, evaluation=four.select([0, 2, 3])).evaluate()["eval_loss"]
    found = make_trainer(options, evaluation=damaged(four, 1)).evaluate()["eval_loss"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_batch_of_which_nothing_is_readable_moves_no_weight(make_trainer: MakeTrainer, corpus: Dataset) -> None:
    """Rows 2 and 3 are the second batch of two: the weights are those after the first."""
    stream = damaged(corpus, 2, 3).to_iterable_dataset()
    options: dict[str, Any] = {"per_device_train_batch_size": 2, "optim": "sgd", "lr_scheduler_type": "constant"}
    options["weight_decay"] = 0.0
    one, two = (make_trainer(train=stream, max_steps=steps, **options) for steps in (1, 2))
    for trainer in (one, two):
        trainer.train()
    torch.testing.assert_close(weights(two.model), weights(one.model), rtol=0, atol=0)
    assert two.state.log_history[1]["left_out"] == 2


@pytest.mark.parametrize("options", [{}, {"gradient_cache_size": 1}, {"gradient_accumulation_steps": 2}], ids=str)
def test_a_batch_of_which_nothing_is_readable_is_not_in_the_mean_loss(
    make_trainer: MakeTrainer, corpus: Dataset, options: dict[str, Any]
) -> None:
    """The second batch of four: the mean of the three others, which train alone at a learning rate of nothing."""
    rows: dict[str, Any] = {"per_device_train_batch_size": 2, "optim": "sgd", "learning_rate": 0.0, **options}
    batches = 4 // options.get("gradient_accumulation_steps", 1)
    one = make_trainer(train=damaged(corpus, 2, 3).to_iterable_dataset(), max_steps=batches, logging_steps=99, **rows)
    found = one.train()
    losses = []
    for first in (0, 4, 6):
        pair = corpus.select([first, first + 1]).to_iterable_dataset()
        alone = {**rows, "gradient_accumulation_steps": 1}
        losses.append(make_trainer(train=pair, max_steps=1, **alone).train().training_loss)
    expected = pytest.approx(sum(losses) / 3, rel=1e-5)
    assert found.training_loss == found.metrics["train_loss"] == expected
    every = make_trainer(train=damaged(corpus, 2, 3).to_iterable_dataset(), max_steps=batches, logging_steps=2, **rows)
    every.train()
    logged = [entry["loss"] for entry in every.state.log_history if "loss" in entry]
    pairs = [losses[:1], losses[1:]] if batches == 4 else [losses]
    assert logged == pytest.approx([sum(pair) / len(pair) for pair in pairs], rel=1e-5)


def test_a_log_of_empty_batches_alone_has_no_loss(make_trainer: MakeTrainer, corpus: Dataset) -> None:
    stream = damaged(corpus, 2, 3).to_iterable_dataset()
    trainer = make_trainer(train=stream, max_steps=3, per_device_train_batch_size=2)
    trainer.train()
    assert ["loss" in entry for entry in trainer.state.log_history[:3]] == [True, False, True]


def test_rows_of_one_id_are_listed_each(make_trainer: MakeTrainer, corpus: Dataset) -> None:
    rows = damaged(corpus.select(range(4)), 0, 1).map(lambda row: {"image_id": "x"})
    trainer = make_trainer(train=rows, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["left_out"] == 2
    assert [name.split(" (row ")[0] for name in trainer.left_out.reasons] == ["x", "x"]


@pytest.mark.parametrize(("options", "batches"), [({"max_steps": 9}, 3), ({"max_steps": 2}, 2)], ids=str)
def test_a_run_that_begins_with_nothing_readable_ends(
    make_trainer: MakeTrainer, corpus: Dataset, options: dict[str, int], batches: int
) -> None:
    trainer = make_trainer(train=damaged(corpus, *range(8)), **options)
    with pytest.raises(ValueError, match=rf"the first {batches} batches.*Left out are .*: OSError"):
        trainer.train()


def test_a_slot_of_blank_captions_has_no_recall(
    make_trainer: MakeTrainer, corpus: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    """What remains is as if the slot were not asked for, and the training goes on."""
    blank = corpus.map(lambda row: {"captions": [*row["captions"][:2], {**row["captions"][2], "text": " "}]})
    trainer = make_trainer(evaluation=blank, eval_strategy="steps", eval_steps=1)
    trainer.train()
    found = trainer.evaluate()
    assert not [name for name in found if name.startswith("eval_shape_")]
    mean = (found["eval_short_image_to_text_recall@1"] + found["eval_colour_image_to_text_recall@1"]) / 2
    assert found["eval_image_to_text_recall@1"] == pytest.approx(mean)
    assert "a usable caption for the slot shape" in caplog.text


@pytest.mark.parametrize("content", ["[1,", "[1]", "", "\x00"])
def test_a_damaged_list_does_not_end_a_resumed_run(
    make_trainer: MakeTrainer, tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(max_steps=1, save_strategy="steps", save_steps=1).train()
    (tmp_path / "left_out.json").write_text(content)
    make_trainer(max_steps=2).train(resume_from_checkpoint=True)
    assert json.loads((tmp_path / "left_out.json").read_text()) == {}
    assert "left_out.json is damaged" in caplog.text


def test_a_tokenizer_is_trained_on_the_captions_that_can_be_read() -> None:
    texts = ["a dog", None, " "]
    rows = [{"captions": [{"perspective": "short", "text": text} for text in texts]}, {"captions": None}]
    assert list(caption_texts(Dataset.from_list(rows))) == ["a dog"]
