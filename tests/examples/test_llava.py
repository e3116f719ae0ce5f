"""LLaVA with a tower of ours: made tiny and run, what each stage trains, what is read, gone on with after a kill."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Trainer,
)

from families import make_naflex, naflex_images
from holistic_clip_hf import HolisticCLIPPatchModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation.records import load_records
from holistic_clip_hf.images.left_out import LeftOutLog
from holistic_clip_hf.initialization import from_siglip
from training.downstream import llava
from training.downstream.clipcap_model import UNTRAINED
from training.downstream.llava import FINETUNE, PRETRAIN, LlavaRecipe, load_llava_recipe, make_llava, make_tiny
from training.downstream.llava_data import IMAGE, Conversation, Reader, read_conversations

RECIPE = Path(__file__).parents[2] / "training" / "downstream" / "llava.yaml"
TOWER, PROJECTOR, LANGUAGE = "model.vision_tower.", "model.multi_modal_projector.", "model.language_model."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llava")


@pytest.fixture(scope="module")
def recipe(folder: Path) -> LlavaRecipe:
    return make_tiny(replace(load_llava_recipe(RECIPE), branch="style"), folder / "ingredients", folder / "drawings")


@pytest.fixture(scope="module")
def finished(recipe: LlavaRecipe, folder: Path) -> Path:
    llava.run_recipe(recipe, folder / "runs")
    return folder / "runs"


@pytest.fixture(scope="module")
def processor(finished: Path) -> LlavaProcessor:
    return AutoProcessor.from_pretrained(finished / FINETUNE)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def test_each_stage_trains_its_parts_alone(recipe: LlavaRecipe, finished: Path) -> None:
    pretrained, finetuned = (
        LlavaForConditionalGeneration.from_pretrained(finished / stage).state_dict() for stage in (PRETRAIN, FINETUNE)
    )
    tower = HolisticCLIPPatchModel.from_pretrained(recipe.checkpoint, branch="style").state_dict()
    assert len(tower) > 10
    for state in (pretrained, finetuned):
        for name, value in tower.items():
            assert torch.equal(state[f"{TOWER}{name}"], value), name
    changed = {name for name in pretrained if not torch.equal(pretrained[name], finetuned[name])}
    assert all(name.startswith((PROJECTOR, LANGUAGE, "lm_head.")) for name in changed)
    assert {name for name in pretrained if name.startswith(PROJECTOR)} < changed
    assert any(name.startswith(LANGUAGE) for name in changed)


def test_the_first_stage_leaves_the_language_model(
    recipe: LlavaRecipe, finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[dict[str, torch.Tensor]] = []
    make = llava.make_llava

    def keep(given: LlavaRecipe) -> Any:
        model, processor = make(given)
        made.append({name: value.clone() for name, value in model.state_dict().items()})
        return model, processor

    monkeypatch.setattr(llava, "make_llava", keep)
    llava.train_stage(llava.Bench(recipe, tmp_path), PRETRAIN)
    after = LlavaForConditionalGeneration.from_pretrained(tmp_path / PRETRAIN).state_dict()
    changed = {name for name in after if not torch.equal(after[name], made[0][name])}
    assert changed == {name for name in after if name.startswith(PROJECTOR)}


@torch.no_grad()
def test_held_out_answers_are_read_with_their_own_images_and_with_others(
    recipe: LlavaRecipe, finished: Path, processor: LlavaProcessor
) -> None:
    """Texts by the template that the processor carries, pixels by its own image processor, losses by loops."""
    model = LlavaForConditionalGeneration.from_pretrained(finished / FINETUNE).eval()
    images = AutoImageProcessor.from_pretrained(recipe.checkpoint, backend="pil")
    told = [each for each in json.loads(Path(recipe.held_out.data).read_text()) if "image" in each]
    files = [Path(recipe.held_out.images) / each["image"] for each in told]
    pixels = [images(Image.open(file).convert("RGB"), return_tensors="pt")["pixel_values"] for file in files]
    losses: dict[str, list[float]] = {"own": [], "another's": []}
    for row, each in enumerate(told):
        turns = [turn["value"].replace(IMAGE, "").strip() for turn in each["conversations"]]
        messages: list[dict[str, Any]] = []
        for place, text in enumerate(turns):
            content = [{"type": "text", "text": text}]
            if place == 0:
                content.insert(0, {"type": "image"})
            messages.append({"role": "assistant" if place % 2 else "user", "content": content})
        text = processor.apply_chat_template(messages).replace(IMAGE, IMAGE * model.config.image_seq_length)
        ids = [processor.tokenizer.bos_token_id, *processor.tokenizer(text, add_special_tokens=False)["input_ids"]]
        answers = [processor.tokenizer(f" {turn}", add_special_tokens=False)["input_ids"] for turn in turns[1::2]]
        ends = [place for place, token in enumerate(ids) if token == processor.tokenizer.eos_token_id]
        places = [p for end, answer in zip(ends, answers, strict=True) for p in range(end - len(answer), end + 1)]
        assert [ids[p] for p in places] == [
            t for answer in answers for t in (*answer, processor.tokenizer.eos_token_id)
        ]
        for name, seen in (("own", pixels[row]), ("another's", pixels[row - 1])):
            scores = model(input_ids=torch.tensor([ids]), pixel_values=seen).logits[0].log_softmax(dim=-1)
            losses[name].append(-sum(scores[p - 1, ids[p]].item() for p in places) / len(places))
    records = {(each.metric, each.details["images"]): each for each in load_records(finished / "results.json")}
    for name, values in losses.items():
        assert records["perplexity", name].value == pytest.approx(math.exp(sum(values) / len(values)), rel=1e-4)
    ratio = records["perplexity_ratio", "own against another's"]
    assert ratio.value == pytest.approx(records["perplexity", "own"].value / records["perplexity", "another's"].value)
    assert ratio.counts == {"n_conversations": len(told)} and ratio.details["branch"] == "style"


def test_a_killed_stage_goes_on_to_the_same_weights(
    recipe: LlavaRecipe, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, done = Trainer.training_step, []

    def die_at_the_fourth_of_the_second_stage(self: Trainer, *given: Any, **options: Any) -> torch.Tensor:
        if len(done) == 4 + 3:
            raise MemoryError
        done.append(1)
        return step(self, *given, **options)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Trainer, "training_step", die_at_the_fourth_of_the_second_stage)
        llava.run_recipe(recipe, tmp_path)
    counted: list[int] = []
    monkeypatch.setattr(
        Trainer, "training_step", lambda self, *given, **options: counted.append(1) or step(self, *given, **options)
    )
    llava.run_recipe(recipe, tmp_path)
    assert len(counted) == 2, "it goes on from the state after the second of the second stage's four steps"
    found, expected = weights(tmp_path / FINETUNE), weights(finished / FINETUNE)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_strangers_may_load_it(finished: Path) -> None:
    config = json.loads((finished / FINETUNE / "config.json").read_text())
    assert config["auto_map"] == {"AutoConfig": "towers_holistic_clip.HolisticConsumerConfig"}
    assert (finished / FINETUNE / "towers_holistic_clip.py").is_file()


def test_the_language_model_learns_the_token_of_images(recipe: LlavaRecipe) -> None:
    model, processor = make_llava(recipe)
    tokenizer = processor.tokenizer
    assert tokenizer.convert_tokens_to_ids(IMAGE) == model.config.image_token_id == len(tokenizer) - 1
    assert model.get_input_embeddings().num_embeddings == model.lm_head.out_features == len(tokenizer)
    assert tokenizer(f"a{IMAGE}{IMAGE}", add_special_tokens=False)["input_ids"][-2:] == [len(tokenizer) - 1] * 2


def spoken(tokenizer: Any, ids: torch.Tensor) -> str:
    return tokenizer.decode(ids).replace("</w>", " ")


def test_only_answers_are_learned(processor: LlavaProcessor) -> None:
    tokenizer = processor.tokenizer
    conversation = Conversation("a.png", [("What is the colour?", "It is red."), ("And the shape?", "A square.")])
    chat = Reader(tokenizer, 5, 100, "Be kind.", plain=False)(conversation)
    learned = chat["labels"] != UNTRAINED
    assert spoken(tokenizer, chat["labels"][learned]) == "it is red . <|endoftext|>a square . <|endoftext|>"
    assert torch.equal(chat["labels"][learned], chat["input_ids"][learned])
    assert (chat["input_ids"] == tokenizer.convert_tokens_to_ids(IMAGE)).sum() == 5
    plain = Reader(tokenizer, 5, 100, "Be kind.", plain=True)(conversation)
    ids, learned = plain["input_ids"], plain["labels"] != UNTRAINED
    assert ids[1:6].tolist() == [tokenizer.convert_tokens_to_ids(IMAGE)] * 5
    assert learned.tolist() == [False] * 6 + [True] * (len(ids) - 6)
    assert spoken(tokenizer, ids[6:]) == "it is red . "
    cut = Reader(tokenizer, 5, 30, "Be kind.", plain=False)(conversation)
    assert torch.equal(cut["input_ids"], chat["input_ids"][:30]) and torch.equal(cut["labels"], chat["labels"][:30])


def turn(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


ASKED, TOLD = turn("human", f"{IMAGE}\nWhat?"), turn("gpt", "A thing.")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"image": "a.png"}, "not pairs of a question and an answer"),
        ({"image": "a.png", "conversations": [ASKED]}, "not pairs of a question and an answer"),
        ({"image": "a.png", "conversations": [TOLD, ASKED]}, "its turn 0 is not a text of human"),
        ({"image": "a.png", "conversations": [turn("human", "What?"), TOLD]}, f"it has {IMAGE} 0 times, and an image"),
        ({"conversations": [ASKED, TOLD]}, f"it has {IMAGE} 1 times, and no image"),
        ({"image": "b.png", "conversations": [ASKED, TOLD]}, "its image: no such file"),
        ({"image": "../a.png", "conversations": [ASKED, TOLD]}, "its image: its path leaves the folder"),
        ({"image": "a.png", "conversations": [ASKED, turn("gpt", "So <end> it is.")]}, "the control token '<end>'"),
    ],
)
def test_what_is_not_a_conversation_is_left_out_by_name(record: dict[str, Any], reason: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    good = {"image": "a.png", "conversations": [ASKED, TOLD]}
    (tmp_path / "list.json").write_text(json.dumps([{"id": 7, **record}, good]))
    log = LeftOutLog()
    found = read_conversations(tmp_path / "list.json", tmp_path / "images", ["<end>", IMAGE], log, needs_image=False)
    assert found == [Conversation("a.png", [("What?", "A thing.")])]
    ((name, told),) = log.reasons.items()
    assert name == "conversation 7 of list.json" and reason in told
    (tmp_path / "list.json").write_text(json.dumps([record]))
    with pytest.raises(ValueError, match="has no conversation that can be used; .*The first was left out because"):
        read_conversations(tmp_path / "list.json", tmp_path / "images", ["<end>"], LeftOutLog(), needs_image=False)


def test_the_first_stage_leaves_out_what_has_no_image(finished: Path) -> None:
    assert json.loads((finished / "left_out-pretrain.json").read_text()) == {
        "conversation text of pretrain.json": "it has no image, from which alone this stage learns"
    }
    assert json.loads((finished / "left_out-finetune.json").read_text()) == {}


def test_the_next_conversation_stands_in_for_an_image_that_cannot_be_read(
    recipe: LlavaRecipe, processor: LlavaProcessor, tmp_path: Path
) -> None:
    names = [path.name for path in sorted(Path(recipe.finetune.images).glob("*.png"))[:3]]
    (tmp_path / names[0]).write_bytes(b"no image")
    for name in names[1:]:
        (tmp_path / name).write_bytes((Path(recipe.finetune.images) / name).read_bytes())
    (tmp_path / "list.json").write_text(
        json.dumps([{"image": name, "conversations": [ASKED, turn("gpt", name)]} for name in names])
    )
    listing = replace(recipe.finetune, data=str(tmp_path / "list.json"), images=str(tmp_path))
    data = llava.Bench(replace(recipe, finetune=listing), tmp_path / "runs").data(FINETUNE, processor, 16)
    assert len(data) == 3
    assert torch.equal(data[0]["input_ids"], data[1]["input_ids"])
    assert list(data.log.reasons) == [f"a conversation about {names[0]}"]
    for name in names[1:]:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="None of 3 conversations can be read"):
        data[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": -2}, "unknown keys layer"),
        ({"vision_feature_layer": "last"}, "`vision_feature_layer` is 'last'; expected a whole number"),
        ({"held_out": {"data": "x"}}, "held_out: missing keys images"),
        (
            {"pretrain": {"data": "x", "images": "y", "training": {"epochs": 1}}},
            "training: unknown keys epochs",
        ),
    ],
)
def test_a_bad_recipe_says_what_is_valid(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(yaml.safe_load(RECIPE.read_text()) | change))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_llava_recipe(tmp_path / "bad.yaml")


def test_towers_and_lengths_that_do_not_fit_are_refused(recipe: LlavaRecipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`max_tokens` is 16; expected more than 16, which an image takes alone"):
        make_llava(replace(recipe, max_tokens=16))
    with pytest.raises(ValueError, match="`branch` is 'smell'; expected one of 'style', 'other'"):
        make_llava(replace(recipe, branch="smell"))
    tokenizer = AutoProcessor.from_pretrained(recipe.checkpoint).tokenizer
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": 0}
    naflex = from_siglip(make_naflex(vocab_size=len(tokenizer), **ends), perspectives=["style"])
    for part in (naflex, HolisticCLIPProcessor(naflex_images(), tokenizer)):
        part.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="whose tower takes images of any shape; expected one of a fixed size"):
        make_llava(replace(recipe, checkpoint=str(tmp_path)))


def test_the_command_runs_when_tiny(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, drawn = load_llava_recipe(RECIPE), tmp_path / "tiny" / "llava"
    make_tiny(whole, drawn / "ingredients", drawn / "drawings")  # what it drew before is known as its own
    llava.main(["--recipe", str(RECIPE), "--tiny", "--output-dir", str(tmp_path)])
    shown = capsys.readouterr().out
    assert re.search(r"^own against another's +perplexity_ratio +\d+\.\d{3}  \[", shown, re.M)
    assert shown.endswith(f"LLaVA  {tmp_path / 'tiny' / 'llava' / FINETUNE}\n")
