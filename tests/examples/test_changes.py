"""Changes of training that studies try, each against a plain loop, and all of them trained on drawn squares."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import Value
from PIL import Image
from torch import nn
from torch.nn import functional as F

from holistic_clip_hf.corpus.build import build_corpus, corpus_features
from holistic_clip_hf.loss_holistic_clip import multi_to_multi_loss
from holistic_clip_hf.trainer.trainer import HolisticCLIPTrainer
from training.changes import (
    CHANGES,
    PROJECTIONS,
    BatchesOfNeighbours,
    Changed,
    EpochOrder,
    OwnOrder,
    OwnProjections,
    cross_slot_term,
    load_changed,
    make_changed,
    nearest_others,
    order_of_groups,
    order_without_duplicates,
    train_changed,
    without_dropped,
)
from training.study import Study, load_study, method_recipe, plan_of

ROOT = Path(__file__).parents[2]
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "black": (0, 0, 0)}
SLOTS = ["short", "category"]


@pytest.mark.parametrize("own", [False, True])
def test_cross_slot_negatives_are_those_of_a_plain_loop(own: bool) -> None:
    """Image to text, each image through each branch: all captions but those that are right."""
    generator = torch.Generator().manual_seed(0)
    branches, texts = (F.normalize(torch.randn(4, 3, 8, generator=generator), dim=-1) for _ in range(2))
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]]).bool()
    # Images 0 and 1 share the text of slot 0, which is also that of image 3 in slot 2.
    ids = torch.tensor([[0, 1, 2], [0, 3, 9], [9, 4, 5], [6, 9, 0]])
    scale, total, count = 7.0, 0.0, 0
    for image in range(4):
        mine = {int(ids[image, slot]) for slot in range(3) if mask[image, slot]}
        for slot in range(3):
            if not mask[image, slot]:
                continue
            usual, others = 0.0, 0.0
            for other in range(4):
                for theirs in range(3):
                    if not mask[other, theirs]:
                        continue
                    exponential = math.exp(scale * float(branches[image, slot] @ texts[other, theirs]))
                    right = {int(ids[image, slot])} if own else mine
                    if theirs == slot:
                        usual += exponential
                    elif int(ids[other, theirs]) not in right:
                        others += exponential
            total += math.log((usual + others) / usual)
            count += 1
    found = cross_slot_term(branches, texts, torch.tensor(scale), mask, ids, own=own)
    assert found.item() == pytest.approx(total / count / 2, rel=1e-5)
    assert cross_slot_term(branches[:, :1], texts[:, :1], torch.tensor(scale), mask[:, :1], ids[:, :1], own=own) == 0


def test_no_two_images_of_a_batch_share_a_caption() -> None:
    drawn = np.random.default_rng(0)
    captions = [frozenset({("name", row // 3), ("colour", int(drawn.integers(12)))}) for row in range(60)]
    order = order_without_duplicates(captions, 6, np.random.default_rng(1))
    assert len(order) == 60 and order != order_without_duplicates(captions, 6, np.random.default_rng(2))
    for start in range(0, 60, 6):
        batch = order[start : start + 6]
        for place, row in enumerate(batch):
            assert all(not captions[row] & captions[other] for other in batch[:place])
    with pytest.raises(ValueError, match="`per_device_train_batch_size` is 6, and at most 5 images without a caption"):
        order_without_duplicates([frozenset({row % 5}) for row in range(60)], 6, np.random.default_rng(0))


def test_distinct_captions_leave_every_row_in_one_batch() -> None:
    order = order_without_duplicates([frozenset({row}) for row in range(12)], 4, np.random.default_rng(0))
    assert sorted(order) == list(range(12))


def test_groups_have_every_row_once() -> None:
    """Rows of one parity go together, five at a time as long as there are as many."""
    order = order_of_groups(23, 5, lambda row, free: free[free % 2 == row % 2].tolist(), np.random.default_rng(0))
    assert sorted(order) == list(range(23))
    parities, runs = [row % 2 for row in order], list[int]()
    for place, parity in enumerate(parities):
        runs = [*runs, 1] if place == 0 or parity != parities[place - 1] else [*runs[:-1], runs[-1] + 1]
    assert sum(run % 5 != 0 for run in runs) <= 2


def test_neighbours_are_the_rows_of_the_nearest_other_captions() -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    numbers = np.array([0, 1, 2, 3, 4, 5, 0, 1, -1, 2])
    free = np.array([1, 2, 4, 5, 6, 7, 8, 9])
    nearest = sorted((1, 2, 4, 5), key=lambda caption: -float(vectors[caption] @ vectors[0]))[:3]
    expected = [next(row for row in free.tolist() if numbers[row] == caption) for caption in nearest]
    assert nearest_others(0, free, numbers, vectors, 3) == expected


def test_dropped_branches_leave_their_shares_to_the_others() -> None:
    routing, kept = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), torch.tensor([[True, False, True], [False] * 3])
    expected = torch.tensor([[0.5 / 0.7, 0.0, 0.2 / 0.7], [0.1, 0.1, 0.8]])
    torch.testing.assert_close(without_dropped(routing, kept), expected)


def test_projections_begin_as_the_shared_one_and_part() -> None:
    shared = nn.Linear(6, 4, bias=False)
    own, states = OwnProjections(shared, 3), torch.randn(5, 3, 6)
    torch.testing.assert_close(own(states), shared(states))
    with torch.no_grad():
        for branch, weight in enumerate(own.parameters()):
            weight.fill_(branch + 1.0)
    patches = torch.randn(5, 3, 2, 6)
    for image in range(5):
        for branch in range(3):
            told = (branch + 1) * states[image, branch].sum()
            torch.testing.assert_close(own(states)[image, branch], told.expand(4))
            told = (branch + 1) * patches[image, branch].sum(dim=-1, keepdim=True)
            torch.testing.assert_close(own(patches)[image, branch], told.expand(2, 4))


def rows() -> Iterator[dict[str, object]]:
    """Sixteen squares by each of three painters; validated on the second, tested on the third."""
    for painter, split in (("ann", "train"), ("bob", "validation"), ("cid", "test")):
        for number in range(16):
            colour = list(COLOURS)[number % 4]
            texts = {"short": f"{colour} square {number}", "category": f"{colour} things"}
            captions = [{"perspective": name, "text": text, "source": "drawn"} for name, text in texts.items()]
            image = Image.new("RGB", (32, 32), COLOURS[colour])
            row = {"image_id": f"{painter}/{number}", "image": image, "captions": captions}
            yield {**row, "artist_split": split, "artist": painter}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A method without a change and one with each, on a frozen tower of random weights."""
    folder = tmp_path_factory.mktemp("study")
    features = corpus_features(artist_split=Value("string"), artist=Value("string"))
    build_corpus(folder / "corpus", {"all": rows}, features, fingerprint="1")
    recipe = yaml.safe_load((ROOT / "training/recipes/emoji.yaml").read_text())
    del recipe["augmentation"]
    recipe |= {"corpus": str(folder / "corpus"), "image_size": 32, "tokenizer": {"vocab_size": 530, "max_length": 24}}
    recipe["model"]["text_config"] |= {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    recipe["model"]["vision_config"]["backbone_config"] |= {"embedding_size": 8, "hidden_sizes": [8, 16, 32]}
    recipe["model"]["vision_config"]["branched_head_mlp"] = True
    recipe["training"] |= {"max_steps": 6, "warmup_steps": 1, "per_device_train_batch_size": 4, "logging_steps": 1}
    recipe["training"] |= {"dataloader_num_workers": 0, "eval_strategy": "no", "save_strategy": "no"}
    recipe["training"] |= {"freeze_tower": True, "states_folder": str(folder / "states")}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    method: dict[str, Any] = {"perspectives": SLOTS, "slots": SLOTS}
    content = {
        "recipe": str(folder / "recipe.yaml"),
        "column": "artist",
        "held_out": ["cid"],
        "perspectives": SLOTS,
        "training": {},
        "methods": {"ours": method, **{change: {**method, "change": change} for change in CHANGES}},
    }
    (folder / "squares.yaml").write_text(yaml.safe_dump(content))
    return load_study(folder / "squares.yaml")


def changed(study: Study, change: str, states: Path) -> HolisticCLIPTrainer:
    recipe = method_recipe(study, change, 0)
    return make_changed(recipe, change, Path(recipe.corpus), states, study.methods[change].change)


def test_a_change_is_part_of_the_plan(study: Study) -> None:
    corpus = Path(study.recipe.corpus)
    plans = {name: plan_of(study, name, 0, corpus) for name in study.methods}
    assert len(set(plans.values())) == len(plans) == 1 + len(CHANGES)
    recipe = method_recipe(study, "ours", 0)
    before = plan_of(study, "routed_with_dropout", 0, corpus)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CHANGES["routed_with_dropout"], "numbers", {"dropped": 0.5})
        assert plan_of(study, "routed_with_dropout", 0, corpus) != before
    assert recipe.fingerprint("ours", "a") != recipe.fingerprint("ours", "b")


def test_changes_that_a_method_cannot_have_are_refused_by_name(study: Study, tmp_path: Path) -> None:
    content = yaml.safe_load(study.path.read_text())
    cases: list[tuple[dict[str, Any], str]] = [
        ({"change": "router"}, r"ours: `change` is 'router'; expected one of cross_slot_negatives, "),
        (
            {"change": "routed", "perspectives": ["all"]},
            "expected the branches short, category, one for",
        ),
        (
            {"change": "batches_by_category", "perspectives": ["all"], "slots": ["short"]},
            "`change` is 'batches_by_category'; expected the slot category beside short. Leave it out",
        ),
    ]
    for parts, message in cases:
        content["methods"] = {"ours": {"perspectives": SLOTS, "slots": SLOTS, **parts}}
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(ValueError, match=message):
            load_study(tmp_path / "wrong.yaml")


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_run_trains_to_a_checkpoint(study: Study, change: str, tmp_path: Path) -> None:
    recipe, checkpoint = method_recipe(study, change, 0), tmp_path / change
    train_changed(recipe, change, Path(recipe.corpus), checkpoint, change)
    model, _ = load_changed(checkpoint)
    written = (checkpoint / "finished.json").stat().st_mtime_ns
    train_changed(recipe, change, Path(recipe.corpus), checkpoint, change)
    assert (checkpoint / "finished.json").stat().st_mtime_ns == written, "it is not trained again"
    assert [path.name for path in tmp_path.iterdir()] == [change]
    if change == "own_projections":
        weights = [projection.weight for projection in model.visual_projection.branches]
        assert (checkpoint / PROJECTIONS).is_file() and not torch.equal(*weights)
    assert (model.config.fusion == "routed") == change.startswith("routed")
    if model.config.fusion == "routed":
        assert model.branch_fusion.router.weight.abs().sum() > 0


@pytest.mark.parametrize("change", ["cross_slot_negatives", "cross_slot_negatives_with_own"])
def test_the_loss_of_a_step_has_the_term(study: Study, change: str, tmp_path: Path) -> None:
    trainer = changed(study, change, tmp_path)
    assert trainer.frozen_tower is not None
    trainer.frozen_tower.prepare(trainer.accelerator.autocast)
    batch = next(iter(trainer.get_train_dataloader()))
    output: Any = trainer._encode(trainer.model, batch)
    scale, captions = output.logit_scale, (batch["caption_mask"], batch["caption_ids"])
    plain = multi_to_multi_loss(
        output.branch_embeds,
        output.text_embeds,
        **trainer._terms([scale]),
        caption_mask=captions[0],
        caption_ids=captions[1],
    ).total
    own = change.endswith("own")
    term = cross_slot_term(output.branch_embeds, output.text_embeds, scale, *captions, own=own)
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), plain + term)


@pytest.mark.parametrize("change", [name for name, kind in CHANGES.items() if issubclass(kind, OwnOrder)])
def test_epochs_have_orders_of_their_own(study: Study, change: str, tmp_path: Path) -> None:
    trainer = changed(study, change, tmp_path)
    assert isinstance(trainer, Changed)
    sampler = trainer._get_train_sampler()
    assert isinstance(sampler, EpochOrder)
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(16)) and len(sampler) == 16
    assert orders[0] != orders[1]
    sampler.set_epoch(0)
    assert list(sampler) == orders[0]
    if isinstance(trainer, BatchesOfNeighbours):
        assert [len(vectors) for _, vectors in trainer.known] == [16, 4]


def test_an_epoch_of_training_takes_the_epochs_order(study: Study, tmp_path: Path) -> None:
    """Groups of one colour are four rows, and so are batches."""
    trainer = changed(study, "batches_by_category", tmp_path)
    seen: list[list[str]] = []
    collate = trainer.data_collator

    def remember(rows: list[dict[str, Any]]) -> dict[str, Any]:
        seen.append([row["image_id"] for row in rows])
        return collate(rows)

    trainer.data_collator = remember  # type: ignore[assignment]
    trainer.train()
    sampler = EpochOrder(trainer.draw, 16, 0)
    names = trainer.train_dataset.rows["image_id"]
    expected = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        order = list(sampler)
        expected += [[names[row] for row in order[start : start + 4]] for start in range(0, 16, 4)]
    assert seen[:6] == expected[:6]
