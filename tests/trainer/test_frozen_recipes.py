"""Recipes whose tower is frozen: all runs share one set of states, made tiny too, and train to normal checkpoints."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, CLIPModel

from holistic_clip_hf.trainer import recipes
from holistic_clip_hf.trainer.recipes import Recipe, load_recipe
from holistic_clip_hf.trainer.tiny import make_ingredients, shrink

RECIPE = Path(__file__).parents[2] / "training" / "recipes" / "photos.yaml"


@pytest.fixture
def tiny(tmp_path: Path) -> Recipe:
    """Two runs from one CLIP, of one probe and of one per perspective, on two views of each image."""
    recipe = load_recipe(RECIPE)
    slots = recipe.slots
    frozen = replace(
        recipe,
        model={"vision_config": {"branch_type": "probe"}},
        training={**recipe.training, "freeze_tower": True, "augmented_views": 2, "learning_rate_multipliers": {}},
        runs={"one": recipes.Run(["all"], slots), "many": recipes.Run(slots, slots)},
        augmentation={"scale": [0.5, 1.0]},
        perturbation=None,
    )
    make_ingredients(frozen, tmp_path / "ingredients")
    return shrink(frozen, tmp_path / "ingredients")


def test_runs_share_the_states_of_their_tower(tiny: Recipe, tmp_path: Path) -> None:
    assert tiny.training["states_folder"] == str(tmp_path / "ingredients" / "states")
    written = []
    for run in tiny.runs:
        recipes.train_run(tiny, run, Path(tiny.corpus), tmp_path / run)
        files = sorted((tmp_path / "ingredients" / "states").glob("*/states.bin"))
        written.append([(path.parent.name, path.stat().st_mtime_ns) for path in files])
        model = AutoModel.from_pretrained(tmp_path / run)
        assert model.config.perspectives == tiny.runs[run].perspectives
        stock = CLIPModel.from_pretrained(tmp_path / "ingredients" / "clip").vision_model.state_dict()
        for name, value in model.vision_model.state_dict().items():
            if name.startswith(model.vision_model.below_states):
                assert torch.equal(value, stock[name]), name
    assert [name for name, _ in written[0]] == ["eval", "train-0", "train-1"]
    assert written[0] == written[1]


def test_the_fingerprint_of_recipes_without_it_stays() -> None:
    recipe = load_recipe(RECIPE)
    assert not {"freeze_tower", "states_folder", "states_dtype", "augmented_views"} & recipe.training.keys()
    frozen = replace(recipe, training={**recipe.training, "freeze_tower": True})
    assert recipe.fingerprint("holistic", "0") != frozen.fingerprint("holistic", "0")


def test_a_recipe_says_it_below_training(tmp_path: Path) -> None:
    path = tmp_path / "frozen.yaml"
    path.write_text(RECIPE.read_text().replace("\ntraining:\n", "\ntraining:\n  freeze_tower: true\n"))
    assert load_recipe(path).training["freeze_tower"] is True
    path.write_text(RECIPE.read_text() + "freeze_tower: true\n")
    with pytest.raises(ValueError, match="`freeze_tower` does not belong here; expected it under `training`"):
        load_recipe(path)
