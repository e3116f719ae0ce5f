"""ClipCap on vectors of checkpoints: made tiny and run, its numbers against loops, gone on with after a kill."""

import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, AutoTokenizer, GPT2Config, GPT2LMHeadModel, Trainer

from holistic_clip_hf.corpus.build import open_split
from holistic_clip_hf.evaluation.encoding import encode_images
from holistic_clip_hf.evaluation.records import load_records
from training.downstream import clipcap
from training.downstream.caption_scores import require_scorers, score_captions
from training.downstream.clipcap import ClipCapRecipe, load_clipcap_recipe, make_tiny, run_recipe
from training.downstream.clipcap_model import UNTRAINED, ClipCapConfig, ClipCapModel
from training.seeds import with_seed

FOLDER = Path(__file__).parents[2] / "training" / "downstream"
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="COCO's tokenizer is a Java program")


def make_recipe(folder: Path, **changes: Any) -> ClipCapRecipe:
    """The recipe of the emoji, on drawings: two perspectives, three runs, a language model from scratch."""
    recipe = make_tiny(load_clipcap_recipe(FOLDER / "clipcap_emoji.yaml"), folder)
    return replace(recipe, **{"score_captions": False, **changes})


@pytest.fixture(scope="module")
def ingredients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clipcap") / "ingredients"


@pytest.fixture(scope="module")
def recipe(ingredients: Path) -> ClipCapRecipe:
    recipe = make_recipe(ingredients)
    kept = ("one_to_many", "holistic_branches")
    return replace(recipe, runs={name: recipe.runs[name] for name in kept})


@pytest.fixture(scope="module")
def finished(recipe: ClipCapRecipe, ingredients: Path) -> Path:
    run_recipe(recipe, ingredients.parent / "runs")
    return ingredients.parent / "runs"


@torch.no_grad()
def test_perplexity_is_that_of_the_language_model_token_by_token(recipe: ClipCapRecipe, finished: Path) -> None:
    checkpoint = recipe.runs["one_to_many"].checkpoint
    tower, processor = AutoModel.from_pretrained(checkpoint), AutoProcessor.from_pretrained(checkpoint)
    rows = open_split(recipe.corpus, "test", split_column=recipe.split_column)
    branches = encode_images(tower, processor, rows, batch_size=8).branch_embeds
    tokenizer = AutoTokenizer.from_pretrained(finished / "one_to_many")
    for run, vectors in (
        ("one_to_many", tower.branch_fusion.single_vectors(branches)[:, None]),
        ("holistic_branches", branches),
    ):
        model = ClipCapModel.from_pretrained(finished / run).eval()
        fc1, fc2 = model.head.fc1, model.head.fc2
        images = []
        for row, given in zip(rows, vectors, strict=True):
            for caption in row["captions"]:
                if caption["perspective"] != "gloss":
                    continue
                prefix = (fc2.weight @ torch.tanh(fc1.weight @ given.flatten() + fc1.bias) + fc2.bias).view(
                    recipe.prefix_length, -1
                )
                prompt = tokenizer("gloss:", add_special_tokens=False)["input_ids"]
                text = tokenizer(caption["text"], add_special_tokens=False)["input_ids"]
                tokens = [*text[: recipe.max_tokens - len(prompt) - 1], tokenizer.eos_token_id]
                table = model.language_model.transformer.wte.weight
                loss = 0.0
                for place, token in enumerate(tokens):
                    read = torch.cat([prefix, table[[*prompt, *tokens[:place]]]])
                    logits = model.language_model(inputs_embeds=read[None]).logits[0, -1]
                    loss -= logits.log_softmax(dim=-1)[token].item()
                images.append(loss / len(tokens))
        (record,) = [
            each
            for each in load_records(finished / "results.json")
            if (each.model, each.metric, each.details["perspective"]) == (run, "perplexity", "gloss")
        ]
        assert record.value == pytest.approx(math.exp(sum(images) / len(images)), rel=1e-5)
        assert record.counts == {"n_images": len(images), "n_captions": len(images)}
        assert record.details["num_vectors"] == vectors.shape[1]
        low, high = record.confidence_interval or (0, 0)
        assert low < record.value < high


def test_runs_are_held_against_the_first_image_by_image(finished: Path) -> None:
    records = load_records(finished / "results.json")
    values = {(each.model, each.metric, each.details["perspective"]): each for each in records}
    assert len(values) == len(records) == 2 * 2 + 2
    for perspective in ("short", "gloss"):
        ratio = values["holistic_branches", "perplexity_ratio", perspective]
        theirs, ours = (values[run, "perplexity", perspective].value for run in ("one_to_many", "holistic_branches"))
        assert ratio.value == pytest.approx(ours / theirs) and ratio.details["against"] == "one_to_many"


def test_what_is_finished_is_not_done_again(
    recipe: ClipCapRecipe, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    assert len(times) == 2 + 2  # weights of two runs, vectors of two splits, shared by both
    for name in ("_encode", "_losses"):
        monkeypatch.setattr(clipcap, name, None)
    run_recipe(recipe, finished)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == times
    shown = capsys.readouterr().out
    assert re.search(r"^short +holistic_branches +\d+\.\d{3} \[", shown, re.M)


def test_a_killed_run_goes_on_to_the_same_weights(
    recipe: ClipCapRecipe, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, done = Trainer.training_step, []

    def die_at_the_fourth(self: Trainer, *given: Any, **options: Any) -> torch.Tensor:
        if len(done) == 3:
            raise MemoryError
        done.append(1)
        return step(self, *given, **options)

    one = replace(recipe, runs={"one_to_many": recipe.runs["one_to_many"]})
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Trainer, "training_step", die_at_the_fourth)
        run_recipe(one, tmp_path)
    assert not (tmp_path / "one_to_many").exists()
    counted: list[int] = []
    monkeypatch.setattr(
        Trainer, "training_step", lambda self, *given, **options: counted.append(1) or step(self, *given, **options)
    )
    run_recipe(one, tmp_path)
    assert len(counted) == 2, "it goes on from the state after the second of four steps"
    found, expected = (load_file(folder / "one_to_many" / "model.safetensors") for folder in (tmp_path, finished))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert not (tmp_path / "one_to_many-states").exists()


@pytest.mark.parametrize("frozen", [False, True])
def test_the_head_learns_and_a_frozen_language_model_stays(frozen: bool) -> None:
    torch.manual_seed(0)
    stock = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    config = ClipCapConfig(
        text_config=stock.config, num_vectors=3, vector_size=4, prefix_length=5, freeze_language_model=frozen
    )
    model = ClipCapModel(config, stock).train()
    assert stock.training == (not frozen)
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    labels = torch.tensor([[UNTRAINED, 4, 5, 6], [UNTRAINED, 8, UNTRAINED, UNTRAINED]])
    batch = {"vectors": torch.randn(2, 3, 4), "input_ids": ids, "attention_mask": (ids > 0).long()}
    output = model.eval()(**batch, labels=labels)
    scores = output.logits.log_softmax(dim=-1)
    pairs = [(0, 1, 4), (0, 2, 5), (0, 3, 6), (1, 1, 8)]
    assert output.loss.item() == pytest.approx(-sum(scores[place].item() for place in pairs) / 4, rel=1e-5)
    output.loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.head.parameters())
    assert all((parameter.grad is None) == frozen for parameter in stock.parameters())


def test_a_captioner_writes_what_is_most_likely(finished: Path) -> None:
    model = ClipCapModel.from_pretrained(finished / "holistic_branches").eval()
    vectors, prompt = torch.randn(2, model.config.num_vectors, model.config.vector_size), torch.tensor([7, 9])
    found = model.caption(vectors, prompt, max_new_tokens=4, pad_token_id=0, eos_token_id=None)
    for row in range(2):
        tokens = prompt.tolist()
        for _ in range(4):
            ids = torch.tensor([tokens])
            logits = model(vectors[row, None], ids, torch.ones_like(ids)).logits
            prefix = model._with_prefix(vectors[row, None], ids, torch.ones_like(ids))[0]
            logits = model.language_model(inputs_embeds=prefix).logits[0, -1]
            tokens.append(int(logits.argmax()))
        assert found[row].tolist() == tokens[2:]


@needs_java
def test_captions_are_scored_as_coco_does() -> None:
    references = [["a b c d f"], ["Seven green apples, on a table.", "a bowl of fruit"], ["one two three four"]]
    found = score_captions(["a b c d e", "seven green apples on a table", "nothing of it at all"], references)
    alone = score_captions(["a b c d e"], [["a b c d f"]])
    assert alone.bleu == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert found.rouge[1] == pytest.approx(1.0), "punctuation and capitals do not count"
    assert found.rouge[0] == pytest.approx(0.8) and found.rouge[2] == 0.0
    assert min(found.cider[:2]) > found.cider[2] == 0.0
    same = ["one two three four", "five six seven eight", "nine ten eleven twelve"]
    assert score_captions(same, [[text] for text in same]).cider == pytest.approx([10.0] * 3)


@needs_java
def test_the_command_runs_when_tiny(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clipcap.main(["--recipe", str(FOLDER / "clipcap.yaml"), "--tiny", "--output-dir", str(tmp_path)])
    shown = capsys.readouterr().out
    assert re.search(r"^short +holistic_branches .*\[", shown, re.M) and "bleu@4" in shown and "cider" in shown
    folder = tmp_path / "tiny" / "clipcap"
    metrics = {record.label for record in load_records(folder / "results.json")}
    assert metrics == {"perplexity", "perplexity_ratio", "bleu@4", "rouge", "cider"}
    written = json.loads((folder / "scores" / "holistic_fused-captions.json").read_text())["short"]
    assert len(written["written"]) == len(written["references"]) > 0


def test_another_seed_lies_apart_and_changes_nothing_else(
    recipe: ClipCapRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    other = with_seed(recipe, 3)
    assert (other.name, other.training["seed"]) == ("clipcap_emoji_seed_3", 3)
    assert replace(other, name=recipe.name, training=recipe.training) == recipe
    assert with_seed(recipe, recipe.training["seed"]) == recipe
    with pytest.raises(SystemExit):
        clipcap.main(["--recipe", str(FOLDER / "clipcap_emoji.yaml"), "--seed", "one"])
    assert "`--seed` is 'one'; expected a whole number" in capsys.readouterr().err


def test_without_java_the_recipe_is_refused_at_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PATH", "")
    with pytest.raises(ValueError, match="no program `java`; expected one"):
        require_scorers()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prefix_lenght": 3}, "unknown keys prefix_lenght. Did you mean prefix_length?"),
        ({"name": "mine"}, "unknown keys name"),
        ({"prefix_length": "ten"}, "`prefix_length` is 'ten'; expected a whole number"),
        ({"training": {"max_steps": 3}}, "training: missing keys seed"),
        ({"training": {"seed": 0, "slots": []}}, "training: unknown keys slots"),
        ({"runs": {}}, "has no `runs` or no `perspectives`"),
        ({"runs": {"one": {"checkpoint": "x"}}}, "runs, one: missing keys vectors"),
        ({"runs": {"../x": {"checkpoint": "x", "vectors": "fused"}}}, "expected names of letters"),
    ],
)
def test_a_bad_recipe_says_what_is_valid(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    content = yaml.safe_load((FOLDER / "clipcap_emoji.yaml").read_text()) | change
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_clipcap_recipe(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perspectives": ["short", "sound"]}, "`perspectives` has sound, of which .* has no caption to train on"),
        (
            {"language_model": {"model_type": "bert", "vocab_size": 600}},
            "expected the name of a causal",
        ),
        ({"language_model": {"model_type": "gpt2", "vocab_size": 600, "n_positions": 8}}, "reads 8 tokens at most"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    change: dict[str, Any], message: str, recipe: ClipCapRecipe, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run_recipe(replace(recipe, **change), tmp_path)
    assert not list(tmp_path.rglob("model.safetensors"))


def test_a_branch_that_the_checkpoint_lacks_is_refused(recipe: ClipCapRecipe, finished: Path, tmp_path: Path) -> None:
    wrong = replace(recipe.runs["one_to_many"], vectors="smell")
    with pytest.raises(ValueError, match="`vectors` is 'smell'; expected 'fused', 'branches', or a branch of"):
        run_recipe(replace(recipe, runs={"smell": wrong}), tmp_path)
