"""Every shipped recipe runs: made tiny, in this process, and on two processes under `accelerate launch`."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, CLIPModel, CLIPTokenizer

from holistic_clip_hf import HolisticCLIPConfig
from holistic_clip_hf.cli.main import parse
from holistic_clip_hf.corpus.build import load_corpus
from holistic_clip_hf.trainer import recipes
from holistic_clip_hf.trainer.recipes import load_recipe, make_model, make_processor
from holistic_clip_hf.trainer.tiny import changes, make_ingredients, shrink

ROOT = Path(__file__).parents[2]
RECIPES = {path.stem: path for path in sorted((ROOT / "training/recipes").glob("*.yaml"))}
ON_MANY_GPUS = ["cc12m", "cc12m_32_epochs", "cc3m", "cc3m_32_epochs", "sharegpt4v_long", "siglip2_long"]
DDP, FSDP2 = (ROOT / "training/accelerate" / name for name in ("ddp.yaml", "fsdp2.yaml"))
STUDIED = ROOT / "training/studies/emoji_recipe.yaml"
every_recipe = pytest.mark.parametrize("name", RECIPES)

# What `--tiny` may change: sizes, numbers of steps, where things lie. All else must stay, or it proves nothing.
MAY_SHRINK = re.compile(
    r"corpus|image_size|start_from|tokenizer\.checkpoint|model\.projection_dim"
    r"|model\.(text|vision)_config\.(hidden_size|intermediate_size|num_hidden_layers|num_attention_heads|patch_size"
    r"|num_branch_layers)|model\.vision_config\.backbone_config\.(embedding_size|hidden_sizes|depths)"
    r"|training\.(max_steps|per_device_(train|eval)_batch_size|gradient_cache_size|warmup_steps|logging_steps"
    r"|eval_steps|save_steps|dataloader_num_workers|use_cpu|states_folder)"
)


@pytest.fixture(scope="module")
def ingredients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the long recipe; its slots are two of every kind of recipe's."""
    directory = tmp_path_factory.mktemp("ingredients")
    make_ingredients(load_recipe(RECIPES["sharegpt4v_long"]), directory)
    return directory


@every_recipe
def test_a_recipe_runs_when_tiny(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, command = load_recipe(RECIPES[name]), ["--recipe", str(RECIPES[name]), "--run", "holistic"]
    parse("train", [*command, "--tiny", "--output-dir", str(tmp_path)])()
    shown = capsys.readouterr().out
    checkpoint = tmp_path / "tiny" / name / "holistic"
    assert shown.endswith(f"{checkpoint}\n") and f"corpus: {recipe.corpus} -> " in shown
    model, processor = AutoModel.from_pretrained(checkpoint), AutoProcessor.from_pretrained(checkpoint)
    assert model.config.perspectives == recipe.runs["holistic"].perspectives
    assert (model.config.model_type == "holistic_siglip") == name.startswith("siglip2")
    length = recipe.tokenizer["max_length"]
    assert processor.tokenizer.model_max_length == model.config.text_config.max_position_embeddings == length
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    assert any("eval_text_to_image_recall@5" in log for log in state["log_history"])
    assert (checkpoint / "modeling_holistic_clip.py").is_file()
    assert not checkpoint.with_name("holistic-states").exists()


@every_recipe
def test_tiny_changes_nothing_but_sizes(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES[name])
    changed = [line.partition(": ")[0] for line in changes(recipe, shrink(recipe, tmp_path))]
    assert {"corpus", "training.max_steps"} <= set(changed)
    assert [field for field in changed if not MAY_SHRINK.fullmatch(field)] == []


@every_recipe
def test_all_runs_of_a_recipe_have_one_backbone(name: str, ingredients: Path, tmp_path: Path) -> None:
    if name.startswith("siglip2"):
        ingredients = tmp_path
        make_ingredients(load_recipe(RECIPES[name]), ingredients)
    recipe = shrink(load_recipe(RECIPES[name]), ingredients)
    tokenizer = make_processor(recipe, load_corpus(ingredients / "corpus")).tokenizer
    towers = []
    for run in recipe.runs:
        config = make_model(recipe, run, tokenizer).config.to_dict()
        assert config["vision_config"].pop("num_branches") == len(recipe.runs[run].perspectives)
        towers.append({field: config[field] for field in ("text_config", "vision_config", "projection_dim")})
    assert all(tower == towers[0] for tower in towers)


def test_the_head_of_a_recipe_says_what_its_body_says() -> None:
    told = {}
    for name, path in RECIPES.items():
        head = re.sub(r"\s+", " ", "".join(re.findall(r"^#(.*\n)", path.read_text(), re.M)))
        command = head.partition("Command ")[2].partition("Hardware")[0]
        if "accelerate launch" not in command:
            continue
        processes, images, epochs = map(
            int, re.search(r"(\d+) processes x (\d+) images.*?(\d+) epochs", head).groups()
        )
        told[name] = (images, epochs)
        config = ROOT / re.search(r"--config_file (\S+)", command)[1]
        given = re.search(r"--num_processes (\d+)", command)
        assert processes == (int(given[1]) if given else load_config_from_file(str(config)).num_processes)
        assert re.search(r"--recipe (\S+) --run holistic", command)[1] == f"training/recipes/{name}.yaml"
    recipes = {name: load_recipe(RECIPES[name]).training for name in told}
    batch, passes = "per_device_train_batch_size", "num_train_epochs"
    assert told == {name: (training[batch], training[passes]) for name, training in recipes.items()}
    assert list(told) == ON_MANY_GPUS


def test_the_paper_recipe_is_the_papers() -> None:
    """Values of the released train.sh, as read there; the recipe may not drift with this package's defaults."""
    for name in ("cc3m", "cc12m"):
        recipe = load_recipe(RECIPES[name])
        training, model = recipe.training, recipe.model
        adam = [training[key] for key in ("learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay")]
        assert adam == [5e-4, 0.9, 0.98, 1e-6, 0.2]
        assert (training["warmup_steps"], training["lr_scheduler_type"]) == (2000, "cosine")
        assert (recipe.augmentation, recipe.tokenizer["max_length"]) == ({"scale": [0.9, 1.0]}, 77)
        assert (model["matching"], model["duplicate_captions"]) == ("aligned", "negative")
        assert model["vision_config"]["branch_isolation"] == "official"


def test_the_long_recipe_stretches_positions_and_keeps_the_checkpoint(ingredients: Path) -> None:
    recipe = shrink(load_recipe(RECIPES["sharegpt4v_long"]), ingredients)
    processor = make_processor(recipe, load_corpus(ingredients / "corpus"))
    model, clip = make_model(recipe, "holistic", processor.tokenizer), CLIPModel.from_pretrained(ingredients / "clip")
    assert model.config.text_config.max_position_embeddings == 248
    found, kept = (each.text_model.embeddings.position_embedding.weight for each in (model, clip))
    assert found.shape[0] == 248 and torch.equal(found[:20], kept[:20])
    assert model.config.text_config.hidden_act == model.config.vision_config.hidden_act == "quick_gelu"
    assert torch.equal(model.visual_projection.weight, clip.visual_projection.weight)
    texts = [caption["text"] for row in load_corpus(ingredients / "corpus") for caption in row["captions"]]
    assert processor(text=texts, return_tensors="pt")["input_ids"].shape[1] == 248, "no caption reaches the last one"


def test_a_checkpoint_that_does_not_fit_is_refused(ingredients: Path) -> None:
    recipe, corpus = shrink(load_recipe(RECIPES["sharegpt4v_long"]), ingredients), load_corpus(ingredients / "corpus")
    with pytest.raises(ValueError, match="`image_size` of recipe 'sharegpt4v_long' is 48. Set it"):
        make_processor(replace(recipe, image_size=48), corpus)
    tokenizer = CLIPTokenizer.from_pretrained(ingredients / "clip", model_max_length=77)
    tokenizer.add_tokens(["unheard"])
    with pytest.raises(ValueError, match=f"has {len(tokenizer)} tokens, .*knows {len(tokenizer) - 1}"):
        make_model(recipe, "holistic", tokenizer)


# Of the recipes whose checkpoints are described in model_cards/, or whose runs a study compares: a change would have
# everybody train them again.
@pytest.mark.parametrize(
    ("path", "run", "expected"),
    [
        (RECIPES["emoji"], "holistic", "db3a13ce377b1978"),
        (RECIPES["emoji_long"], "one_to_many", "db5951d2c26d5759"),
        (STUDIED, "holistic", "3a2d7ceef707b543"),
    ],
)
def test_a_recipe_keeps_its_fingerprint(path: Path, run: str, expected: str) -> None:
    recipe = load_recipe(path)
    assert recipe.fingerprint(run, "corpus") == expected
    others = [replace(recipe, start_from="some/clip"), replace(recipe, augmentation=None)]
    assert len({recipe.fingerprint(run, "corpus"), *(other.fingerprint(run, "corpus") for other in others)}) == 3


def test_towers_from_scratch_are_the_papers_unless_said() -> None:
    recipe = load_recipe(STUDIED)
    assert "hidden_act" not in recipe.model["vision_config"]
    bare = replace(recipe, model={**recipe.model, "vision_config": {}})
    towers = [HolisticCLIPConfig(**each.model_fields("holistic")) for each in (recipe, bare)]
    assert [(tower.vision_config.hidden_act, tower.vision_config.patch_size) for tower in towers] == [
        ("gelu", 8),
        ("gelu", 16),
    ]
    assert {"hidden_act", "patch_size"}.isdisjoint(
        replace(bare, start_from="some/clip").model_fields("holistic")["vision_config"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rats": 3}, "unknown keys learning_rats. Valid keys: augmentation, caption_form, corpus"),
        ({"corpus": None, "model": "clip"}, "model: got 'clip'"),
        ({"training": {"seed": 0, "epochs": 3}}, "training: unknown keys epochs"),
        ({"training": {"max_steps": 3}}, "training: missing keys seed"),
        ({"training": {"seed": 0, "slots": ["short"]}}, "training: unknown keys slots"),
        ({"model": {"projection_dims": 8}}, "model: unknown keys projection_dims"),
        ({"model": {"vision_config": {"num_branches": 8}}}, "vision_config: unknown keys num_branches"),
        ({"tokenizer": {"max_length": 9}}, "either `vocab_size`, to train one, or `checkpoint`"),
        ({"tokenizer": {"max_length": 9, "vocab_size": 600, "checkpoint": "x"}}, "either `vocab_size`"),
        (
            {"augmentation": {"size": 3}},
            "augmentation: unknown keys size. Valid keys: colour_perspectives, ratio, recolouring, rotation, scale",
        ),
        ({"runs": {"one": {"perspectives": ["a"]}}}, "runs, one: missing keys slots"),
        ({"runs": {}}, "has no runs"),
    ],
)
def test_a_bad_recipe_says_what_is_valid(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    content = yaml.safe_load(RECIPES["emoji"].read_text()) | change
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_recipe(tmp_path / "bad.yaml")


def test_accelerate_reads_the_configurations(ingredients: Path) -> None:
    ddp, fsdp = load_config_from_file(str(DDP)), load_config_from_file(str(FSDP2))
    assert (ddp.distributed_type, fsdp.distributed_type) == (DistributedType.MULTI_GPU, DistributedType.FSDP)
    assert fsdp.fsdp_config["fsdp_version"] == 2
    recipe = shrink(load_recipe(RECIPES["cc3m"]), ingredients)
    model = make_model(recipe, "holistic", CLIPTokenizer.from_pretrained(ingredients / "clip"))
    wrapped = set(fsdp.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(","))
    assert wrapped == {type(tower.encoder.layers[0]).__name__ for tower in (model.text_model, model.vision_model)}


# accelerate starts FSDP on accelerators only: it is told that gloo's processes are such.
SHARDED = """
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

PartialState._prepare_backend = lambda self, *args: ("gloo", DistributedType.MULTI_GPU)
PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
torch.distributed.init_process_group("gloo")

from holistic_clip_hf.cli.main import main
from holistic_clip_hf.trainer import recipes
from torch.distributed.tensor import DTensor

publish = recipes.publish_checkpoint


def publish_sharded(trainer, *args):
    whole = {name for name, weight in trainer.model.named_parameters() if not isinstance(weight, DTensor)}
    assert whole == {"logit_scale"}, whole
    publish(trainer, *args)


recipes.publish_checkpoint = publish_sharded
main()
"""


def launch(config: Path, program: list[str], recipe: Path, output_dir: Path) -> dict[str, torch.Tensor]:
    """Weights after a tiny run on two processes."""
    # A port of its own, so that two test runs on one machine do not meet.
    launcher = ["--config_file", str(config), "--num_processes", "2", "--main_process_port", "0"]
    options = ["--recipe", str(recipe), "--run", "holistic", "--tiny", "--output-dir", str(output_dir)]
    settings = {"HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *launcher, *program, *options],
        cwd=ROOT,
        env={**os.environ, **settings, "HF_DATASETS_CACHE": str(output_dir / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert ended.stdout.count("Made tiny") == 1 and "unused parameters" not in ended.stderr
    return load_file(output_dir / "tiny" / recipe.stem / "holistic" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cc3m_32_epochs", "sharegpt4v_long", "siglip2_long"])
def test_two_processes_train_and_shards_change_nothing(name: str, tmp_path: Path) -> None:
    """In float32, where DDP and FSDP2 round alike; the second recipe has a gradient cache.

    With so large an epsilon Adam's steps are as long as gradients are, so that a wrongly scaled one shows.
    """
    content = yaml.safe_load(RECIPES[name].read_text())
    content["training"] |= {"bf16": False, "learning_rate": 0.1, "adam_epsilon": 1.0}
    recipe = tmp_path / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(content))
    (tmp_path / "sharded.py").write_text(SHARDED)
    whole = launch(DDP, ["-m", "holistic_clip_hf", "train"], recipe, tmp_path / "ddp")
    sharded = launch(FSDP2, [str(tmp_path / "sharded.py"), "train"], recipe, tmp_path / "fsdp")
    assert whole.keys() == sharded.keys()
    far = {name: (sharded[name] - value).abs().max().item() for name, value in whole.items()}
    assert {name: gap for name, gap in far.items() if gap > 1e-5} == {}


@pytest.mark.parametrize("name", ["/any/path", "../x", "a/b", ".hidden", "", "a\\b", 7])
def test_a_run_is_a_folder_below_its_recipe(name: Any, tmp_path: Path) -> None:
    content = yaml.safe_load(RECIPES["emoji"].read_text())
    content["runs"] = {name: content["runs"]["holistic"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="`runs` has .*; expected names of letters"):
        load_recipe(tmp_path / "mine.yaml")


def test_training_replaces_no_folder_of_others(ingredients: Path, tmp_path: Path) -> None:
    recipe = shrink(load_recipe(RECIPES["sharegpt4v_long"]), ingredients)
    for folder, holds in (("holistic", "a checkpoint"), ("holistic-states", "states of training")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "thesis.tex").write_text("mine")
        with pytest.raises(ValueError, match=f"which holds thesis.tex; expected a new or empty folder, or {holds}"):
            recipes.train_run(recipe, "holistic", Path(recipe.corpus), tmp_path / "holistic")
        assert (tmp_path / folder / "thesis.tex").read_text() == "mine"
        (tmp_path / folder / "thesis.tex").rename(tmp_path / "thesis.tex")


def originals(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["cat.png", "README.md", "config.json", "model.safetensors", "finished.json"])
def test_a_name_that_a_checkpoint_has_is_not_proof_of_one(name: str, ingredients: Path, tmp_path: Path) -> None:
    recipe = shrink(load_recipe(RECIPES["sharegpt4v_long"]), ingredients)
    (tmp_path / "holistic").mkdir()
    (tmp_path / "holistic" / name).write_text("mine")
    with pytest.raises(
        ValueError, match=f"`output` is .*holistic, which holds {name}; expected a new or empty folder"
    ):
        recipes.train_run(recipe, "holistic", Path(recipe.corpus), tmp_path / "holistic")
    assert originals(tmp_path) == {f"holistic/{name}": b"mine"}


@pytest.mark.parametrize("name", ["clip/config.json", "corpus/cat.png", "corpus/data/cat.png", "corpus/corpus.json"])
def test_tiny_draws_into_no_folder_of_others(name: str, tmp_path: Path) -> None:
    theirs = tmp_path / "tiny" / "cc3m" / "ingredients" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    options = ["--recipe", str(RECIPES["cc3m"]), "--run", "holistic", "--tiny", "--output-dir", str(tmp_path)]
    with pytest.raises(ValueError, match="`output` is .*, which holds .*; expected a new or empty folder"):
        parse("train", options)()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [theirs] and theirs.read_text() == "mine"


def test_training_again_removes_only_what_training_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--recipe", str(RECIPES["cc3m"]), "--run", "holistic", "--tiny", "--output-dir", str(tmp_path)]
    parse("train", options)()
    folder = tmp_path / "tiny" / "cc3m"
    checkpoint = folder / "holistic"
    theirs = [checkpoint / name for name in ("notes.txt", "photos/cat.png", "cat.png")]
    theirs += [folder / "ingredients" / name for name in ("corpus/notes.txt", "corpus/data/cat.png")]
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (checkpoint / "results.json").write_text("of the earlier run")

    def killed(trainer: Any, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(recipes.HolisticCLIPTrainer, "save_result", killed)
        parse("train", options)()
    assert not (checkpoint / "results.json").exists() and not (checkpoint / "model.safetensors").exists()
    tiny = shrink(load_recipe(RECIPES["cc3m"]), folder / "ingredients")
    recipes.train_run(tiny, "holistic", Path(tiny.corpus), checkpoint)  # goes on from its last state
    assert AutoModel.from_pretrained(checkpoint).config.perspectives == tiny.runs["holistic"].perspectives
    assert all(path.read_text() == "mine" for path in theirs) and not (folder / "holistic-states").exists()


def test_what_an_earlier_version_left_half_saved_is_replaced(ingredients: Path, tmp_path: Path) -> None:
    """It put its marker last; the states of the run lay beside it."""
    recipe = shrink(load_recipe(RECIPES["cc3m"]), ingredients)
    (tmp_path / "holistic").mkdir()
    (tmp_path / "holistic" / "config.json").write_text("{")
    (tmp_path / "holistic-states" / "0123456789abcdef").mkdir(parents=True)
    recipes.require_own_run(tmp_path / "holistic")
    recipes.clear_result(tmp_path / "holistic")
    assert not recipes.is_finished(tmp_path / "holistic", recipe.fingerprint("holistic", "corpus"))
    assert list(originals(tmp_path)) == ["holistic/finished.json"]


def test_perturbation_parts_copies_and_is_kept_out_of_older_fingerprints(ingredients: Path, tmp_path: Path) -> None:
    exact = shrink(load_recipe(RECIPES["photos"]), ingredients)
    noisy = replace(exact, perturbation=0.1)
    tokenizer = make_processor(exact, load_corpus(ingredients / "corpus")).tokenizer
    parts = []
    for recipe in (exact, noisy):
        weights = make_model(recipe, "holistic", tokenizer).state_dict()
        (name,) = {name for name in weights if ".branch_fc2.0.weight" in name and ".layers.1." in name}
        parts.append(weights[name] - weights[name.replace("branch_fc2.0", "fc2")])
    assert parts[0].abs().max() == 0 and parts[1].abs().max() > 0
    assert exact.fingerprint("holistic", "0") != noisy.fingerprint("holistic", "0")
    path = tmp_path / "scratch.yaml"
    path.write_text(f"{RECIPES['emoji'].read_text()}perturbation: 0.1\n")
    with pytest.raises(ValueError, match="`perturbation` is 0.1 without `start_from`"):
        load_recipe(path)


def test_a_perturbation_of_a_checkpoint_of_ours_is_refused(ingredients: Path, tmp_path: Path) -> None:
    """Its branches are kept by name, so that no copy would be parted, silently."""
    exact = shrink(load_recipe(RECIPES["photos"]), ingredients)
    tokenizer = make_processor(exact, load_corpus(ingredients / "corpus")).tokenizer
    make_model(exact, "holistic", tokenizer).save_pretrained(tmp_path)
    ours = replace(exact, start_from=str(tmp_path), model={}, perturbation=0.1)
    with pytest.raises(ValueError, match="has a `perturbation`; expected none, since it parts the copies of a CLIP"):
        make_model(ours, "holistic", tokenizer)
