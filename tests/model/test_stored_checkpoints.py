"""Checkpoints written by released versions load for ever, package and processor both, and answer as they did.

`tests/data/checkpoints/<version>/<branch type>/` holds them; its README says what is stored and why. They are written
once, by `python -m tests.test_stored_checkpoints`, and never again.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoProcessor, CLIPImageProcessor

import holistic_clip_hf
from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel, HolisticCLIPProcessor

STORED = Path(__file__).parents[1] / "data" / "checkpoints"
CHECKPOINTS = sorted(path.parent for path in STORED.glob("*/*/config.json"))
EXPECTED, PICTURE, TEXTS = "expected.safetensors", "picture.png", "texts.json"
TOWERS = ("text_config", "vision_config")
MAX_BYTES = 200_000
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

every_checkpoint = pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda path: path.relative_to(STORED).as_posix())


def answers(model: HolisticCLIPModel, processor: HolisticCLIPProcessor, folder: Path) -> dict[str, Tensor]:
    """All that somebody might have kept, an index of vectors above all."""
    texts = json.loads((folder / TEXTS).read_text())
    with Image.open(folder / PICTURE) as picture:
        images = processor(images=[picture.convert("RGB")] * 2, return_tensors="pt")
    flat = processor(text=texts["flat"], padding=True, return_tensors="pt")
    nested = processor.nested_captions(texts["nested"])
    with torch.no_grad():
        scores, losses = model(**images, **flat), model(**images, **nested, return_loss=True)
        patches = model.get_patch_features(images["pixel_values"]).patch_embeds
    found = {"pixel_values": images["pixel_values"], "input_ids": flat["input_ids"], "loss": losses.loss[None]}
    found |= {"nested_input_ids": nested["input_ids"], "patch_embeds": patches}
    found |= {name: scores[name] for name in ("image_embeds", "branch_embeds", "text_embeds", "logits_per_image")}
    return {name: value.contiguous() for name, value in found.items()}


def test_each_branch_type_of_this_version_is_stored() -> None:
    here = {path.name for path in CHECKPOINTS if path.parent.name == holistic_clip_hf.__version__}
    assert here == {"cls", "mlp"}


@every_checkpoint
def test_it_loads_and_answers_as_it_did(folder: Path) -> None:
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    processor = AutoProcessor.from_pretrained(folder)
    assert (type(model), type(processor)) == (HolisticCLIPModel, HolisticCLIPProcessor)
    expected = load_file(folder / EXPECTED)
    found = answers(model.eval(), processor, folder)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@every_checkpoint
def test_names_of_weights_and_settings_are_still_known(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    config = AutoConfig.from_pretrained(folder)
    state = HolisticCLIPModel(config).state_dict()
    assert {name: value.shape for name, value in state.items()} == {n: value.shape for n, value in weights.items()}
    written = json.loads((folder / "config.json").read_text())
    known = config.to_dict()
    for old, new in ((written, known), *((written[tower], known[tower]) for tower in TOWERS)):
        kept = old.keys() - {"auto_map", "transformers_version", *TOWERS}
        followed = {} if old is written else {"projection_dim": written["projection_dim"]}  # once left at CLIP's 512
        assert {name: new[name] for name in kept} == {name: old[name] for name in kept} | followed


@every_checkpoint
def test_it_saves_what_it_was(folder: Path, tmp_path: Path) -> None:
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path)
    saved, stored = (load_file(path / "model.safetensors") for path in (tmp_path, folder))
    assert saved.keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in saved.items())


@every_checkpoint
def test_it_is_small(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) < MAX_BYTES


def store(folder: Path, branch_type: str) -> None:
    """Write a checkpoint of this version, with what it answers."""
    from conftest import COLOURS, IMAGE_SIZE, MAX_LENGTH, SHAPES, draw, randomise
    from holistic_clip_hf.trainer.tiny import train_tokenizer

    drawn = [f"a {colour} {shape} on white, drawn flat" for colour in COLOURS for shape in SHAPES]
    tokenizer = train_tokenizer(drawn, vocab_size=540, max_length=MAX_LENGTH)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = HolisticCLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), tokenizer)
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    branches = {"num_branches": 3, "branch_type": branch_type, "num_branch_layers": 1}
    config = HolisticCLIPConfig(
        perspectives=["short", "colour", "shape"],
        projection_dim=8,
        text_config={**tower, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": MAX_LENGTH},
        vision_config={**tower, **branches, "image_size": IMAGE_SIZE, "patch_size": 8},
    )
    model = HolisticCLIPModel(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for code in folder.glob("*.py"):
        code.unlink()
    picture = draw("red", "circle", size=40).resize((48, 40))
    picture.save(folder / PICTURE)
    nested = [["a red circle", "all red", None], ["a blue square", None, "one square, drawn flat"]]
    texts = {"flat": ["a red circle", "größe 正", "blue <|endoftext|>"], "nested": nested}
    (folder / TEXTS).write_text(json.dumps(texts, indent=2) + "\n")
    save_file(answers(model, processor, folder), folder / EXPECTED)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    for kind in ("cls", "mlp"):
        place = STORED / holistic_clip_hf.__version__ / kind
        if place.exists():
            raise SystemExit(f"{place} is there. What a version has stored is never written again.")
        store(place, kind)
