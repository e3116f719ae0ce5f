"""The road from photos and a list of captions to a checkpoint, in one command, on drawn photos and tiny towers."""

import csv
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.nn import functional as F
from transformers import BertConfig, CLIPConfig, CLIPModel, SiglipConfig, SiglipImageProcessorPil, SiglipModel

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor, HolisticSiglipModel
from holistic_clip_hf.cli.main import main
from holistic_clip_hf.corpus.build import load_corpus
from holistic_clip_hf.evaluation import retrieval
from holistic_clip_hf.evaluation.encoding import load_checkpoint
from holistic_clip_hf.evaluation.records import load_records
from holistic_clip_hf.initialization import from_holistic_clip
from holistic_clip_hf.locks import hold_lock
from holistic_clip_hf.trainer.callbacks import OneLinePrinter
from holistic_clip_hf.trainer.finetuning import caption_lengths, choose_settings, order_of_branches, read_base
from holistic_clip_hf.trainer.recipes import load_recipe, make_tokenizer
from holistic_clip_hf.trainer.recipes import make_model as build_model

NUM_PHOTOS = 40


@pytest.fixture
def clip(make_config: Callable[..., Any], processor: HolisticCLIPProcessor, tmp_path: Path) -> Path:
    """A stock CLIP with its processor, of two layers a tower, as a folder."""
    config = make_config(perspectives=["all"], vision={"num_branches": 1})
    vision = {name: value for name, value in config.vision_config.to_dict().items() if "branch" not in name}
    stock = CLIPConfig(
        projection_dim=config.projection_dim, text_config=config.text_config.to_dict(), vision_config=vision
    )
    torch.manual_seed(3)
    CLIPModel(stock).save_pretrained(tmp_path / "clip")
    processor.image_processor.save_pretrained(tmp_path / "clip")
    processor.tokenizer.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture
def photos(corpus: Dataset, tmp_path: Path) -> Path:
    """Forty photos in a folder, and beside it a list with a column for each of two perspectives."""
    folder, rows = tmp_path / "photos", [["file_name", "title", "colour"]]
    folder.mkdir()
    for number in range(NUM_PHOTOS):
        row = corpus[number % len(corpus)]
        captions = {caption["perspective"]: caption["text"] for caption in row["captions"]}
        row["image"].rotate(number, fillcolor="white").save(folder / f"{number}.png")
        rows.append([f"{number}.png", f"{captions['short']}, number {number}", captions["colour"]])
    with open(tmp_path / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def finetune(photos: Path, base: Path, output: Path, *options: str) -> None:
    captions = ["--captions", str(photos.parent / "captions.csv")]
    main(["finetune", str(photos), *captions, "--base", str(base), "--output", str(output), *options])


COLUMNS = ("--caption", "title=short", "--caption", "colour=palette")


def test_from_photos_to_a_checkpoint_that_knows_its_base(
    photos: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pixel_values: torch.Tensor
) -> None:
    output = tmp_path / "mine"
    finetune(photos, clip, output, *COLUMNS, "--epochs", "2", "--batch-size", "8")
    said = capsys.readouterr().out
    assert "branches palette, short" in said and "batch size 8: as asked for" in said
    gained = re.search(
        r"text to image +[\d.]+ -> [\d.]+, gained ([+-][\d.]+) \(95 % interval ([^ ]+) to ([^)]+)\)", said
    )
    assert gained and float(gained[2]) <= float(gained[1]) <= float(gained[3])
    assert len(load_corpus(output / "corpus")) == NUM_PHOTOS
    model = HolisticCLIPModel.from_pretrained(output / "model")
    assert model.config.perspectives == ["palette", "short"] and model.config.vision_config.branch_type == "mlp"
    assert {record.model for record in load_records(output / "model" / "results.json")} == {"mine", "base"}
    card = (output / "model" / "README.md").read_text()
    assert "# mine" in card and "![Loss and recall during training](training.png)" in card
    with Image.open(output / "model" / "training.png") as curves:
        assert curves.width > curves.height > 100
    trained = (output / "model" / "model.safetensors").stat().st_mtime_ns
    finetune(photos, clip, output, *COLUMNS, "--epochs", "2", "--batch-size", "8")
    assert (output / "model" / "model.safetensors").stat().st_mtime_ns == trained, "what is finished stays"

    recipe = load_recipe(output / "recipe.yaml")
    begun = build_model(recipe, "model", make_tokenizer(recipe, load_corpus(output / "corpus")))
    stock = CLIPModel.from_pretrained(clip).eval()
    with torch.no_grad():
        expected = F.normalize(stock.get_image_features(pixel_values).pooler_output, dim=-1)
        found = begun.eval().get_image_features(pixel_values)
    torch.testing.assert_close(found.pooler_output, expected, rtol=0, atol=1e-6)
    again = HolisticCLIPModel.from_pretrained(output / "model").eval().get_image_features(pixel_values).branch_embeds
    alike = F.cosine_similarity(again[:, 0], again[:, 1], dim=-1)
    assert alike.mean() < 0.9999, "copies have begun to part"


def test_columns_of_texts_become_perspectives_and_are_said(
    photos: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --caption: each column of words that differ, and none of names, numbers, addresses or one licence."""
    listing = tmp_path / "captions.csv"
    rows = list(csv.reader(listing.open(newline="")))
    more = [["Main Object", "stars", "page", "terms", "author"]]
    more += [
        [f"a thing {number}", "5", f"https://e.org/{number}", "free", f"Ada {number}"] for number in range(NUM_PHOTOS)
    ]
    with listing.open("w", newline="") as file:
        csv.writer(file).writerows([*row, *cells] for row, cells in zip(rows, more, strict=True))
    finetune(photos, clip, tmp_path / "mine", "--epochs", "1", "--batch-size", "8")
    said = capsys.readouterr().out
    assert "taken from the columns title as title, colour as colour, Main Object as main_object; name others" in said
    kept = {each["perspective"] for row in load_corpus(tmp_path / "mine" / "corpus") for each in row["captions"]}
    assert kept == {"title", "colour", "main_object"}


@pytest.fixture
def siglip(processor: HolisticCLIPProcessor, tmp_path: Path) -> Path:
    """A stock SigLIP with its processor, of two layers a tower, as a folder."""
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = processor.tokenizer
    texts = {"vocab_size": len(tokenizer), "max_position_embeddings": 24, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(3)
    config = SiglipConfig(text_config={**tower, **texts}, vision_config={**tower, "image_size": 32, "patch_size": 8})
    SiglipModel(config).save_pretrained(tmp_path / "siglip")
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "siglip")
    tokenizer.save_pretrained(tmp_path / "siglip")
    return tmp_path / "siglip"


def test_a_siglip_is_given_probes(
    photos: Path, siglip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pixel_values: torch.Tensor
) -> None:
    output = tmp_path / "mine"
    finetune(photos, siglip, output, *COLUMNS, "--epochs", "1", "--batch-size", "8")
    assert "recall@5 in %, base -> mine" in capsys.readouterr().out
    model = HolisticSiglipModel.from_pretrained(output / "model")
    assert model.config.perspectives == ["palette", "short"] and model.config.vision_config.branched_head_mlp
    assert {record.model for record in load_records(output / "model" / "results.json")} == {"mine", "base"}
    recipe = load_recipe(output / "recipe.yaml")
    begun = build_model(recipe, "model", make_tokenizer(recipe, load_corpus(output / "corpus"))).eval()
    with torch.no_grad():
        expected = SiglipModel.from_pretrained(siglip).eval().get_image_features(pixel_values).pooler_output
        found = begun.get_image_features(pixel_values).pooler_output
    torch.testing.assert_close(found, F.normalize(expected, dim=-1), rtol=0, atol=2e-6)
    finetune(photos, output / "model", tmp_path / "again", *COLUMNS, "--epochs", "1", "--batch-size", "8")
    assert type(load_checkpoint(str(tmp_path / "again" / "model"))[0]) is HolisticSiglipModel


def test_a_tower_that_is_frozen_stays(
    photos: Path,
    siglip: Path,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOLISTIC_CLIP_CACHE", str(tmp_path / "cache"))
    options = (*COLUMNS, "--epochs", "1", "--batch-size", "8", "--freeze-tower")
    finetune(photos, siglip, tmp_path / "mine", *options)
    shown = capsys.readouterr()
    assert "vision tower frozen: as asked for" in shown.out and "base -> mine, on" in shown.out
    assert re.search(r"states of \d+ images, 16 x 32 numbers of float16 each, 0.0 MB in", shown.err)
    weights = HolisticSiglipModel.from_pretrained(tmp_path / "mine" / "model").state_dict()
    stock = SiglipModel.from_pretrained(siglip).vision_model.state_dict()
    for name, value in stock.items():
        if not name.startswith("head."):
            assert torch.equal(weights[f"vision_model.backbone.{name}"], value), name
    assert not torch.equal(weights["vision_model.head.probe"], stock["head.probe"])
    with pytest.raises(SystemExit):
        finetune(photos, clip, tmp_path / "other", *options)
    assert "whose branches are part of its tower (mlp); expected a SigLIP, or a" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "other" / "corpus").exists()


def test_a_list_as_spreadsheets_write_it(photos: Path, clip: Path, tmp_path: Path) -> None:
    """With semicolons, in the encoding of Western Europe; the options that its refusals name are this verb's too."""
    listing, options = tmp_path / "captions.csv", (*COLUMNS, "--epochs", "1", "--batch-size", "8")
    written = "\n".join(f"{number}.png;café {number};all red" for number in range(NUM_PHOTOS))
    listing.write_bytes(f"snap;title;colour\n{written}\n".encode("cp1252"))
    for more in ((), ("--encoding", "cp1252")):
        with pytest.raises(SystemExit):
            finetune(photos, clip, tmp_path / "mine", *options, *more)
        assert not (tmp_path / "mine").exists()
    finetune(photos, clip, tmp_path / "mine", *options, "--encoding", "cp1252", "--image-column", "snap")
    texts = {each["text"] for row in load_corpus(tmp_path / "mine" / "corpus") for each in row["captions"]}
    assert texts == {"all red", *(f"café {number}" for number in range(NUM_PHOTOS))}


def test_a_checkpoint_of_ours_keeps_its_branches_by_name(
    photos: Path, make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, tmp_path: Path
) -> None:
    base = make_model(
        perspectives=["style", "short"], vision={"branch_type": "mlp", "num_branch_layers": 1, "num_branches": 2}
    )
    for part in (base, processor):
        part.save_pretrained(tmp_path / "base")
    assert order_of_branches(read_base(str(tmp_path / "base")), ["palette", "short"]) == ["short", "palette"]
    finetune(photos, tmp_path / "base", tmp_path / "finer", *COLUMNS, "--epochs", "1", "--batch-size", "8")
    assert HolisticCLIPModel.from_pretrained(tmp_path / "finer" / "model").config.perspectives == ["short", "palette"]


def test_captions_keep_the_form_of_the_base_and_each_is_asked_in_its_own(
    photos: Path,
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The base's form is for its own perspectives, the result's for those that it was trained on."""
    base = make_model(perspectives=["short", "style"], vision={"branch_type": "probe", "num_branches": 2})
    parts = processor.image_processor, processor.tokenizer
    form: dict[str, Any] = {"caption_form": "{perspective}: {text}", "caption_perspectives": ["short", "style"]}
    for part in (base, HolisticCLIPProcessor(*parts, **form)):
        part.save_pretrained(tmp_path / "base")
    seen: list[Any] = []
    asked = retrieval.embed_alike
    monkeypatch.setattr(retrieval, "embed_alike", lambda *given: seen.append(asked(*given)) or seen[-1])
    finetune(photos, tmp_path / "base", tmp_path / "mine", *COLUMNS, "--epochs", "1", "--batch-size", "8")
    assert "captions keep the form of the base, '{perspective}: {text}'" in capsys.readouterr().out
    assert load_recipe(tmp_path / "mine" / "recipe.yaml").caption_form == "{perspective}: {text}"
    saved = HolisticCLIPProcessor.from_pretrained(tmp_path / "mine" / "model")
    assert (saved.caption_form, saved.caption_perspectives) == ("{perspective}: {text}", ["short", "palette"])
    texts = {name: {text for each in owned for text in each} for name, owned in seen[0].captions.items()}
    assert all(text.startswith("short: a ") for text in texts["short"])
    assert all(text.startswith("all ") for text in texts["palette"])
    asked_of_mine = {text for each in seen[0].plain_captions["short"] for text in each}
    assert {f"short: {text}" for text in asked_of_mine} == texts["short"]


def test_the_tokens_of_a_caption_are_counted_with_its_form(
    make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, tmp_path: Path
) -> None:
    captions = [[{"perspective": "short", "text": "a red square"}]]
    model = make_model(perspectives=["short"], vision={"num_branches": 1})
    parts = processor.image_processor, processor.tokenizer
    form: dict[str, Any] = {"caption_form": "{perspective}: {text}", "caption_perspectives": ["short"]}
    for name, each in (("plain", processor), ("formed", HolisticCLIPProcessor(*parts, **form))):
        for part in (model, each):
            part.save_pretrained(tmp_path / name)
    counted = [caption_lengths(read_base(str(tmp_path / name)), captions)[0] for name in ("plain", "formed")]
    tokens = [len(processor.tokenizer(text)["input_ids"]) for text in ("a red square", "short: a red square")]
    assert counted == tokens and tokens[0] < tokens[1]


def test_probes_of_ours_part_by_linears_of_their_own(
    photos: Path,
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    tmp_path: Path,
    pixel_values: torch.Tensor,
) -> None:
    old = make_model(perspectives=["short"], vision={"branch_type": "probe", "num_branches": 1})
    for part in (old, processor):
        part.save_pretrained(tmp_path / "base")
    finetune(photos, tmp_path / "base", tmp_path / "mine", *COLUMNS, "--epochs", "1", "--batch-size", "8")
    recipe = load_recipe(tmp_path / "mine" / "recipe.yaml")
    rates = recipe.training["learning_rate_multipliers"]
    assert set(rates) == {"*.branch_*", "*.head.probe", "*.head.mlp.fc2.*"} and len(set(rates.values())) == 1
    begun = build_model(recipe, "model", make_tokenizer(recipe, load_corpus(tmp_path / "mine" / "corpus"))).eval()
    assert begun.config.diversity_threshold == 0.8 != old.config.diversity_threshold
    assert begun.config.fused_weight == 0.25 != old.config.fused_weight
    expected, found = (each.get_image_features(pixel_values).pooler_output for each in (old, begun))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    tuned = HolisticCLIPModel.from_pretrained(tmp_path / "mine" / "model")
    assert tuned.config.perspectives == ["short", "palette"] and tuned.config.vision_config.branched_head_mlp


@pytest.mark.parametrize("kind", [{"branch_type": "mlp", "num_branch_layers": 1}, {"branch_isolation": "strict"}])
def test_branches_are_kept_by_name_and_new_ones_are_copies(
    make_model: Callable[..., HolisticCLIPModel], pixel_values: torch.Tensor, tmp_path: Path, kind: dict[str, Any]
) -> None:
    old = make_model(perspectives=["style", "short", "web"], vision=kind, fusion="routed")
    old.save_pretrained(tmp_path)
    expected = old.get_image_features(pixel_values).branch_embeds.unbind(dim=1)
    for names, sources in (
        (["short", "palette", "style", "web"], [1, 1, 0, 2]),
        *([(["web"], [2])] if "branch_type" in kind else []),  # patches see a class token that is alone
        (["mine", "yours"], [0, 0]),
        (["style", "short", "web"], [0, 1, 2]),
    ):
        made = from_holistic_clip(tmp_path, perspectives=names)
        assert made.config.perspectives == names
        assert made.config.fusion == ("routed" if names == old.config.perspectives else "centroid")
        found = made.get_image_features(pixel_values).branch_embeds
        for branch, source in enumerate(sources):
            torch.testing.assert_close(found[:, branch], expected[source], rtol=0, atol=1e-6)


def test_settings_fit_the_number_of_images(clip: Path) -> None:
    base = read_base(str(clip))
    for rows, batch in ((2, 2), (40, 8), (100, 16), (1_000, 32), (100_000, 32)):
        chosen = {choice.name: choice.value for choice in choose_settings(rows, base, {})}
        steps = chosen["epochs"] * max(1, rows // chosen["batch size"])
        assert chosen["batch size"] == batch, "no more than a quarter of the images, nor than the device's"
        assert chosen["epochs"] == 30 or steps >= 300
        assert 1 <= chosen["warm-up steps"] <= steps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"base": "nowhere"},
            "`--base` is .*nowhere, which is not a folder; expected a CLIP, MetaCLIP 2",
        ),
        ({"base": "photos"}, "`--base` is .*photos; expected a CLIP, MetaCLIP 2, SigLIP or a checkpoint"),
        ({"columns": ("--caption", "heading=short")}, "'heading'"),
        ({"options": ("--validation", "0.5", "--test", "0.5")}, "expected shares from 0, below 1 together"),
    ],
)
def test_mistakes_end_in_a_sentence_before_anything_is_trained(
    photos: Path,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    message: str,
) -> None:
    base = tmp_path / change["base"] if "base" in change else clip
    with pytest.raises(SystemExit) as ended:
        finetune(photos, base, tmp_path / "mine", *change.get("columns", COLUMNS), *change.get("options", ()))
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and re.search(message, said), said
    assert not (tmp_path / "mine" / "model").exists()


def test_stopped_twice_it_ends_as_if_it_never_was(
    photos: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Signals(OneLinePrinter):
        due: dict[int, int] = {}  # signals by step

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_step_begin(args, state, control, **kwargs)
            if signum := self.due.pop(state.global_step, 0):
                os.kill(os.getpid(), signum)

    monkeypatch.setattr("holistic_clip_hf.trainer.callbacks.OneLinePrinter", Signals)
    options, before = (*COLUMNS, "--epochs", "3", "--batch-size", "8"), signal.getsignal(signal.SIGTERM)
    finetune(photos, clip, tmp_path / "whole", *options)
    for step, signum, code in ((1, signal.SIGINT, 130), (5, signal.SIGTERM, 143)):
        Signals.due[step] = signum
        with pytest.raises(SystemExit) as ended:
            finetune(photos, clip, tmp_path / "stopped", *options)
        assert ended.value.code == code
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert re.match(rf"holistic-clip finetune: Stopped after step {step + 1} of 9, which is saved as .*", said)
        assert "Give the same command again to go on" in said
    finetune(photos, clip, tmp_path / "stopped", *options)
    signal.signal(signal.SIGTERM, before)
    whole, found = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert found == whole
    assert not (tmp_path / "stopped" / "model-states").exists()


def _list_of(photos: Path, change: Callable[[int, str, str], list[Any]]) -> None:
    """Write the list of captions anew, each row by its number, title and colour."""
    path = photos.parent / "captions.csv"
    with open(path, newline="") as file:
        head, *rows = csv.reader(file)
    with open(path, "w", newline="", encoding="latin-1") as file:
        changed = [change(number, title, colour) for number, (_, title, colour) in enumerate(rows)]
        csv.writer(file).writerows([head, *([f"{number}.png", *row] for number, row in enumerate(changed))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda number, title, colour: ["a shape", "a shape"], "All captions are 'a shape'; expected captions that"),
        (lambda number, title, colour: [title, title], "perspectives short and palette have the same captions"),
        (
            lambda number, title, colour: [title + "ü" * (number < 10), colour],
            "10 of 40 photos .*not in UTF-8",
        ),
    ],
    ids=["all alike", "one text twice", "another encoding"],
)
def test_captions_that_teach_nothing_are_refused(
    photos: Path,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[int, str, str], list[Any]],
    message: str,
) -> None:
    _list_of(photos, change)
    with pytest.raises(SystemExit) as ended:
        finetune(photos, clip, tmp_path / "mine", *COLUMNS, "--epochs", "1")
    said = capsys.readouterr()
    assert ended.value.code == 2 and re.search(message, said.err.strip().splitlines()[-1]), said.err
    assert "photos with captions: " in said.out
    assert not (tmp_path / "mine").exists(), "corrected captions from another file would be those of another corpus"


def test_a_folder_of_broken_photos_is_refused_and_one_with_some_is_not(
    photos: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        (photos / f"{number}.png").write_bytes((photos / f"{number}.png").read_bytes()[:100])
    finetune(photos, clip, tmp_path / "some", *COLUMNS, "--epochs", "1", "--batch-size", "8")
    assert re.search(r"left out, listed in .*\n +5 does not decode", capsys.readouterr().out)
    for number in range(36):
        (photos / f"{number}.png").write_bytes(b"<html>" if number < 30 else b"")
    with pytest.raises(SystemExit):
        finetune(photos, clip, tmp_path / "most", *COLUMNS, "--epochs", "1", "--batch-size", "8")
    said = capsys.readouterr().err
    assert re.search(r"36 of 40 photos were left out \((no image|0 bytes), .*\), the first .*png; expected at", said)
    assert not (tmp_path / "most").exists(), "a list that is corrected begins anew"


def test_a_refusal_leaves_what_lay_in_the_output(photos: Path, clip: Path, tmp_path: Path) -> None:
    _list_of(photos, lambda number, title, colour: ["a shape", "a shape"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        finetune(photos, clip, tmp_path / "mine", *COLUMNS, "--epochs", "1")
    assert [path.name for path in (tmp_path / "mine").iterdir() if path.name != ".lock"] == ["notes.txt"]


@pytest.mark.parametrize("named", [COLUMNS, ()], ids=["named", "proposed"])
def test_captions_that_are_all_alike_are_refused_in_one_sentence(
    photos: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], named: tuple[str, ...]
) -> None:
    _list_of(photos, lambda number, title, colour: ["a shape", "all red"])
    with pytest.raises(SystemExit):
        finetune(photos, clip, tmp_path / "mine", *named, "--epochs", "1")
    assert "All captions are 'a shape' or 'all red'; expected captions that tell" in capsys.readouterr().err


def test_photos_of_phones_are_told_from_what_is_not_an_image(
    photos: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(30):
        (photos / f"{number}.png").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(SystemExit):
        finetune(photos, clip, tmp_path / "mine", *COLUMNS, "--epochs", "1")
    said = capsys.readouterr().err
    assert "30 of 40 photos were left out (the format HEIC is not read), the first" in said
    assert "expected at most 50%. Convert them, as with `magick mogrify" in said


def test_few_held_out_photos_are_said_to_mean_little(
    photos: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (*COLUMNS, "--epochs", "1", "--batch-size", "8", "--test")
    for share, is_few in (("0.1", True), ("0.4", False)):
        output = tmp_path / f"mine-{share}"
        finetune(photos, clip, output, *options, share)
        count = load_corpus(output / "corpus")["split"].count("test")
        assert (count < 10) is is_few
        said, card = capsys.readouterr().out, (output / "model" / "README.md").read_text()
        note = f"Recall was measured on {count} images, too few to mean much"
        assert (note in said and "such as `--test 0.3`" in said) is is_few
        assert (note in card) is is_few
    made = tmp_path / "mine-0.1"
    options = ("--model", f"{made / 'model'}", "--corpus", f"{made / 'corpus'}", "--output", f"{made / 'r.json'}")
    main(["evaluate", *options])
    assert "too few to mean much" in capsys.readouterr().out
    names = {record.dataset for record in load_records(made / "r.json") + load_records(made / "model/results.json")}
    assert names == {"mine-0.1"}, "both verbs call the corpus alike"


def test_longer_captions_are_read_if_asked(
    photos: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = read_base(str(clip))
    _list_of(photos, lambda number, title, colour: [f"{title} " + "with a dot " * base.max_length, colour])
    with pytest.raises(SystemExit):
        finetune(photos, clip, tmp_path / "less", *COLUMNS, "--max-length", str(base.max_length - 1))
    assert f"`--max-length` is {base.max_length - 1}; expected {base.max_length}" in capsys.readouterr().err
    assert not (tmp_path / "less").exists()
    options = (*COLUMNS, "--epochs", "1", "--batch-size", "8")
    finetune(photos, clip, tmp_path / "cut", *options)
    said = capsys.readouterr().out
    found = re.search(r"tokens of a caption (\d+): as the base reads\. [\d,]+ of [\d,]+ .* `--max-length (\d+)`", said)
    assert found and int(found[1]) == base.max_length < int(found[2])
    finetune(photos, clip, tmp_path / "long", *options, "--max-length", found[2])
    assert f"tokens of a caption {found[2]}: as asked for\n" in capsys.readouterr().out
    model = HolisticCLIPModel.from_pretrained(tmp_path / "long" / "model")
    processor = HolisticCLIPProcessor.from_pretrained(tmp_path / "long" / "model")
    assert model.config.text_config.max_position_embeddings == processor.tokenizer.model_max_length == int(found[2])
    kept = model.text_model.embeddings.position_embedding.weight[:20]
    stock = CLIPModel.from_pretrained(clip).text_model.embeddings.position_embedding.weight[:20]
    assert (kept - stock).abs().max() < 0.01, "the first twenty positions are the base's"


def test_a_text_model_is_not_a_base(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(SystemExit):
        finetune(photos, tmp_path / "bert", tmp_path / "mine", *COLUMNS)
    assert "bert, a checkpoint of 'bert'; expected a CLIP" in capsys.readouterr().err


def test_a_full_disk_is_told_before_training(
    photos: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 4 * 7 * CLIPModel.from_pretrained(clip).num_parameters()
    usage = SimpleNamespace(total=10**9, used=10**9 - needed + 1, free=needed - 1)
    monkeypatch.setattr("holistic_clip_hf.storage.shutil.disk_usage", lambda place: usage)
    with pytest.raises(SystemExit):
        finetune(photos, clip, tmp_path / "mine", *COLUMNS, "--epochs", "1", "--batch-size", "8")
    assert "MB free; the training needs about" in capsys.readouterr().err
    assert not list((tmp_path / "mine").glob("model*"))


@pytest.mark.parametrize("place", ["", "model-states"], ids=["output", "run"])
def test_an_output_that_is_being_written_is_refused(
    photos: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    with hold_lock(tmp_path / "mine" / place / ".lock"):
        with pytest.raises(SystemExit) as ended:
            finetune(photos, clip, tmp_path / "mine", *COLUMNS, "--epochs", "1", "--batch-size", "8")
        assert ended.value.code == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{tmp_path / 'mine' / place} is being written by process {os.getpid()} since 20" in said
        assert not (tmp_path / "mine" / "model").exists()
