# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Recipes: one YAML file per comparison. All its runs share corpus, backbone, steps and batch, so that it is fair.

A run's model starts from scratch or from a CLIP checkpoint. A finished run is not trained again, and an interrupted
one goes on from its last saved state.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, cast, get_type_hints

import torch
from datasets import Dataset
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTokenizer,
    PreTrainedConfig,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..configuration_holistic_clip import (
    MODEL_TYPES,
    HolisticBackboneVisionConfig,
    HolisticCLIPConfig,
    HolisticCLIPVisionConfig,
)
from ..corpus.build import EmptySplitError, open_split, read_manifest
from ..corpus.near_duplicates import find_near_duplicates
from ..field_types import require_types
from ..images.left_out import usable_captions
from ..initialization import from_checkpoint, from_holistic_clip, load_image_processor, saved_caption_form
from ..locks import LOCK
from ..modeling_holistic_clip import HolisticCLIPModel
from ..options_holistic_clip import require_caption_form, write_caption
from ..processing_holistic_clip import HolisticCLIPProcessor
from ..storage import (
    PARTIAL,
    field_names,
    read_yaml,
    remove_own_files,
    require_keys,
    require_own_folder,
    shown,
    write_atomically,
    write_json,
)
from ..visualization.figures import training_curves, training_figure
from .arguments import HolisticCLIPTrainingArguments, require_enough_rows
from .augmentation import Augmentation
from .resuming import hold_output, last_whole_checkpoint
from .trainer import HolisticCLIPTrainer

logger = logging.getLogger(__name__)

# What a recipe says elsewhere than under `model`, and what training says itself, by run and machine.
SAID_ELSEWHERE = {"perspectives", "num_branches", "image_size", "max_position_embeddings"}
# A run is a folder below that of its recipe.
RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
SAID_BY_TRAIN = {"output_dir", "slots", "dataloader_pin_memory"}
# The paper's ViT-B/16, which a recipe means by a vision tower from scratch of which it does not say these. They are no
# part of its fingerprint, so they can never change.
PAPER_VISION = {"hidden_act": "gelu", "patch_size": 16}
# What a recipe may change of a checkpoint of this package: the loss, and linears of their own for its probes.
OF_THE_LOSS = {
    *("fused_weight", "diversity", "diversity_weight", "diversity_threshold", "duplicate_captions", "matryoshka_dims")
}
OWN_LINEARS = {"branched_head_mlp": True}
START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"


@dataclass
class Run:
    """Parts that one run has of its own: the names of its branches and the caption slots it is trained on."""

    perspectives: list[str]
    slots: list[str]


@dataclass
class Recipe:
    """A recipe file; see the comments at the head of each in `training/recipes/`.

    Args:
        corpus: `emoji`, or a corpus directory.
        split_column: the column of the corpus that says train, validation or test.
        image_size: side of the square that the vision tower sees.
        tokenizer: `max_length` in tokens, and either `vocab_size`, to train one on the corpus, or `checkpoint`, a CLIP
            checkpoint to take it from.
        model: fields of `HolisticCLIPConfig`; with `start_from`, what differs from the checkpoint. From scratch, a
            vision tower has `hidden_act: gelu` and `patch_size: 16` unless said otherwise, as in the paper.
        training: fields of `HolisticCLIPTrainingArguments`, `seed` among them.
        augmentation: Augmentation of training images. Default: none.
        start_from: a CLIP checkpoint, by name or folder, whose weights and image processor are taken over. Left out:
            random weights.
        held_out: a column and the value of it that is tested on and never trained on, in place of the rows that the
            split column calls test. Left out: the split column decides.
        perturbation: Noise on copies of CLIP's branch, as `from_clip` takes it. Left out: none.
        caption_form: Form of all captions, with `{text}` and, where wanted, `{perspective}`: `"{perspective}: {text}"`
            lets a text say what it asks for. It is saved with the processor, which writes texts so wherever their
            perspective is known. Left out: the text.
        drop_near_duplicates: Leave out of training and validation the images that are near-duplicates of one that is
            tested. Left out: they stay.
    """

    name: str
    corpus: str
    split_column: str
    image_size: int
    tokenizer: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]
    runs: dict[str, Run]
    augmentation: dict[str, Any] | None = None
    start_from: str | None = None
    held_out: dict[str, str] | None = None
    perturbation: float | None = None
    caption_form: str | None = None
    drop_near_duplicates: bool | None = None

    @property
    def seed(self) -> int:
        return int(self.training["seed"])

    @property
    def slots(self) -> list[str]:
        """Every perspective that some run is trained on, in order of first appearance."""
        return list(dict.fromkeys(slot for run in self.runs.values() for slot in run.slots))

    def fingerprint(self, run: str, corpus: str) -> str:
        """Return a hash that changes with the recipe of a run and with the fingerprint of its corpus.

        What is left out does not count, so that a recipe keeps its fingerprint when recipes learn a new key.
        """
        facts = {**asdict(self), "runs": asdict(self.runs[run]), "name": None, "corpus": corpus}
        left_out = {field.name for field in fields(self) if field.default is None and facts[field.name] is None}
        told = {name: fact for name, fact in facts.items() if name not in left_out}
        return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def model_fields(self, run: str) -> dict[str, Any]:
        """Return what the recipe says of the configuration of a run's model. The rest comes with tokenizer or
        checkpoint.
        """
        perspectives = self.runs[run].perspectives
        sizes = {"image_size": self.image_size, "num_branches": len(perspectives)}
        given = self.model.get("vision_config", {}) | sizes
        return {
            **self.model,
            "perspectives": perspectives,
            "text_config": dict(self.model.get("text_config", {})),
            "vision_config": given if self.start_from or "backbone_config" in given else {**PAPER_VISION, **given},
        }


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file.

    Raises:
        ValueError: no such file, keys that are unknown or lacking.
    """
    path = Path(path)
    if not path.is_file():
        found = ", ".join(sorted(str(file) for file in Path("training/recipes").glob("*.yaml")))
        raise ValueError(
            f"`recipe` is {path}, which is not a file; expected a recipe, such as {found or 'those of a checkout'}."
        )
    content = read_yaml(path)
    valid = {field.name: field for field in fields(Recipe) if field.name != "name"}
    needed = [name for name, field in valid.items() if field.default is MISSING]
    places = {"training": field_names(HolisticCLIPTrainingArguments), "model": field_names(HolisticCLIPConfig)}
    _refuse_misplaced(str(path), content, set(valid), places)
    require_keys(str(path), content, valid, needed)
    if not content["runs"] or not isinstance(content["runs"], dict):
        raise ValueError(f"{path} has no runs; expected a name and, below it, `perspectives` and `slots`.")
    for name, run in content["runs"].items():
        require_run_name(name, f"{path}: `runs`")
        require_keys(f"{path}, runs, {name}", run, field_names(Run), field_names(Run))
        require_types(f"{path}, runs, {name}", run, get_type_hints(Run))
    _check_model(path, content["model"])
    _check_tokenizer(path, content["tokenizer"])
    _check_training(path, content["training"])
    if content.get("augmentation") is not None:
        require_keys(f"{path}, augmentation", content["augmentation"], field_names(Augmentation) - {"size"})
        require_types(f"{path}, augmentation", content["augmentation"], get_type_hints(Augmentation))
    require_types(str(path), content, get_type_hints(Recipe))
    if content.get("perturbation") is not None and content.get("start_from") is None:
        raise ValueError(
            f"{path}: `perturbation` is {content['perturbation']} without `start_from`; expected a checkpoint whose "
            "copies it parts. Leave it out for random weights."
        )
    require_caption_form(str(path), content.get("caption_form"))
    runs = {name: Run(**run) for name, run in content.pop("runs").items()}
    return Recipe(name=path.stem, runs=runs, **content)


def require_run_name(name: Any, where: str) -> None:
    """Raise `ValueError` unless `name` can be that of a folder below another; `where` is what has it."""
    if not isinstance(name, str) or not RUN_NAME.fullmatch(name):
        raise ValueError(
            f"{where} has {shown(name)}; expected names of letters, digits, '.', '_' and '-' that do not begin with a "
            f"dot. Rename the run."
        )


def _check_training(path: Path, training: Any) -> None:
    arguments = field_names(HolisticCLIPTrainingArguments) - SAID_BY_TRAIN
    fields_of_model = field_names(HolisticCLIPConfig) - SAID_ELSEWHERE
    _refuse_misplaced(f"{path}, training", training, arguments, {"model": fields_of_model})
    require_keys(f"{path}, training", training, arguments, ["seed"])
    require_types(f"{path}, training", training, get_type_hints(HolisticCLIPTrainingArguments))
    if training.get("push_to_hub") and not training.get("hub_model_id"):
        # The Trainer would take the name of its folder, which is a fingerprint.
        raise ValueError(
            f"{path}, training: `push_to_hub` is set without `hub_model_id`; expected the repository as owner/name. "
            "Add it, or leave both out and use `holistic-clip publish`."
        )


def _refuse_misplaced(where: str, found: Any, valid: set[str], others: Mapping[str, set[str]]) -> None:
    """Refuse a key that would be right elsewhere in the recipe; `others` are keys by the place that has them."""
    for key in found if isinstance(found, dict) else ():
        for place, keys in others.items():
            if key not in valid and key in keys:
                raise ValueError(f"{where}: `{key}` does not belong here; expected it under `{place}`. Move it.")


def _check_model(path: Path, model: Any) -> None:
    valid, towers = field_names(HolisticCLIPConfig) - SAID_ELSEWHERE, ("text_config", "vision_config")
    arguments = field_names(HolisticCLIPTrainingArguments)
    _refuse_misplaced(f"{path}, model", model, valid, {"training": arguments})
    require_keys(f"{path}, model", model, valid)
    require_types(
        f"{path}, model", {name: model[name] for name in towers if name in model}, dict.fromkeys(towers, dict)
    )
    has_backbone = "backbone_config" in model.get("vision_config", {})
    vision = HolisticBackboneVisionConfig if has_backbone else HolisticCLIPVisionConfig
    for name, kind in (("text_config", CLIPTextConfig), ("vision_config", vision)):
        require_keys(f"{path}, model, {name}", model.get(name, {}), field_names(kind) - SAID_ELSEWHERE)


def _check_tokenizer(path: Path, tokenizer: Any) -> None:
    require_keys(f"{path}, tokenizer", tokenizer, ["vocab_size", "checkpoint", "max_length"], ["max_length"])
    if ("vocab_size" in tokenizer) == ("checkpoint" in tokenizer):
        raise ValueError(
            f"{path}, tokenizer: got {shown(tokenizer)}; expected either `vocab_size`, to train one, or `checkpoint`, "
            f"to take one from."
        )
    require_types(f"{path}, tokenizer", tokenizer, {"vocab_size": int, "checkpoint": str, "max_length": int})


def make_processor(recipe: Recipe, corpus: Dataset, run: str | None = None) -> HolisticCLIPProcessor:
    """Make the processor: CLIP's image processor at the recipe's size, or the checkpoint's, a tokenizer that is
    trained on the corpus or taken, and the recipe's form of captions.

    Args:
        recipe: Recipe.
        corpus: Rows to train a tokenizer on.
        run: Name of the run, whose slots have captions in the form. Default: all runs.

    Raises:
        ValueError: the checkpoint's images are of another size than the recipe's.
    """
    size = recipe.image_size
    crop = {"height": size, "width": size}
    if recipe.start_from is None:
        image_processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=crop)
    else:
        image_processor = load_image_processor(recipe.start_from)
        seen = size_seen(image_processor)
        if seen != crop:
            raise ValueError(
                f"{recipe.start_from} sees images of {seen}; `image_size` of recipe "
                f"{recipe.name!r} is {size}. Set it to the checkpoint's."
            )
    slots = recipe.slots if run is None else recipe.runs[run].slots
    return HolisticCLIPProcessor(
        image_processor,
        make_tokenizer(recipe, corpus),
        caption_form=recipe.caption_form,
        caption_perspectives=slots if recipe.caption_form else (),
    )


def _warn_of_other_form(recipe: Recipe) -> None:
    """Say that a checkpoint of this package is trained on with another form of captions than its own."""
    start = cast(str, recipe.start_from)
    before = saved_caption_form(start)[0]
    if before != recipe.caption_form:
        was, becomes = (repr(form or "{text}") for form in (before, recipe.caption_form))
        logger.warning(
            "Captions of %s had the form %s, and recipe %r trains it on with the form %s: set `caption_form` to the "
            "first to keep what it learned.",
            *(start, was, recipe.name, becomes),
        )


def size_seen(image_processor: Any) -> dict[str, int]:
    """Return height and width of the images that an image processor gives."""
    size = image_processor.crop_size if getattr(image_processor, "do_center_crop", False) else image_processor.size
    return {name: size[name] for name in ("height", "width")}


def load_tokenizer(checkpoint: str, **options: Any) -> Any:
    """Load the tokenizer of a checkpoint, CLIP's unless it is of another family."""
    kind = PreTrainedConfig.get_config_dict(checkpoint)[0].get("model_type", "clip")
    if kind in ("clip", HolisticCLIPConfig.model_type):
        return CLIPTokenizer.from_pretrained(checkpoint, **options)
    return AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False, **options)


def make_tokenizer(recipe: Recipe, corpus: Dataset) -> CLIPTokenizer:
    """Train a tokenizer on the corpus or, where the recipe names a checkpoint, take that one's, at the recipe's
    length.
    """
    if "checkpoint" not in recipe.tokenizer:
        return train_tokenizer(caption_texts(corpus, recipe.caption_form), **recipe.tokenizer)
    max_length = recipe.tokenizer["max_length"]
    return load_tokenizer(recipe.tokenizer["checkpoint"], model_max_length=max_length)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, max_length: int) -> CLIPTokenizer:
    """Learn merges from `texts`. Every byte is a token, so that no text, in any script, is unknown to it.

    Args:
        texts: Texts to learn merges from.
        vocab_size: entries in all: 512 hold the bytes (inside and at the end of a word), 2 start and end.
        max_length: longest text in tokens, start and end included; longer ones are cut.

    Raises:
        ValueError: no room for the bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    single = [*alphabet, *(byte + END_OF_WORD for byte in alphabet)]
    num_merges = vocab_size - len(single) - 2
    if num_merges < 0:
        raise ValueError(f"`vocab_size` is {vocab_size}; expected {len(single) + 2} or more, to hold every byte.")
    merges = _learn_merges(texts, single, vocab_size)[:num_merges]
    tokens = [*single, *("".join(pair) for pair in merges), START, END]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def _learn_merges(texts: Iterable[str], single: list[str], vocab_size: int) -> list[tuple[str, str]]:
    form = CLIPTokenizer().backend_tokenizer  # only for how CLIP normalises and splits text
    bare = Tokenizer(BPE(end_of_word_suffix=END_OF_WORD))
    bare.normalizer, bare.pre_tokenizer = form.normalizer, form.pre_tokenizer
    # Of two pairs that are as frequent, the lower ids merge first. Left to the trainer, bytes at the end of a word get
    # theirs in the order of a hash table, which is another each time.
    trainer = BpeTrainer(
        vocab_size=vocab_size, special_tokens=single, end_of_word_suffix=END_OF_WORD, show_progress=False
    )
    bare.train_from_iterator(texts, trainer)
    return [(first, second) for first, second in json.loads(bare.to_str())["model"]["merges"]]


def caption_texts(corpus: Dataset, form: str | None = None) -> Iterator[str]:
    """Yield all captions of a corpus that can be read, without decoding its images; training names the others.

    Args:
        corpus: Rows.
        form: Form to write captions in. Default: captions as they are.
    """
    for captions in corpus.select_columns("captions")["captions"]:
        for perspective, text in usable_captions("", captions, {}):
            yield text if form is None else write_caption(form, perspective, text)


def make_model(recipe: Recipe, run: str, tokenizer: CLIPTokenizer) -> HolisticCLIPModel:
    """Return the model of a run before its first step, with a text position for each token of the tokenizer's length.

    Raises:
        ValueError: the tokenizer knows tokens that the checkpoint's text tower does not.
    """
    fields = recipe.model_fields(run)
    fields["text_config"]["max_position_embeddings"] = tokenizer.model_max_length
    if recipe.start_from is not None:
        model = _started(recipe, fields)
        known = cast(CLIPTextConfig, model.config.text_config).vocab_size
        if len(tokenizer) > known:
            raise ValueError(
                f"The tokenizer of recipe {recipe.name!r} has {len(tokenizer)} tokens, {recipe.start_from} knows "
                f"{known}. Take the tokenizer from the same checkpoint."
            )
        return model
    fields["text_config"] |= {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return HolisticCLIPModel(HolisticCLIPConfig(**fields))


def _started(recipe: Recipe, fields: dict[str, Any]) -> HolisticCLIPModel:
    """Return the checkpoint that a recipe starts from: a stranger's given branches, or ours with branches by name."""
    start = cast(str, recipe.start_from)
    if PreTrainedConfig.get_config_dict(start)[0].get("model_type") not in MODEL_TYPES:
        return from_checkpoint(start, perturbation=recipe.perturbation or 0.0, seed=recipe.seed, **fields)
    if recipe.perturbation is not None:
        raise ValueError(
            f"Recipe {recipe.name!r} starts from {start}, a checkpoint of this package, and has a `perturbation`; "
            "expected none, since it parts the copies of a CLIP. Leave it out."
        )
    _warn_of_other_form(recipe)
    linears = recipe.model.get("vision_config", {})
    if recipe.model.keys() - {"vision_config", *OF_THE_LOSS} or linears not in ({}, OWN_LINEARS):
        raise ValueError(
            f"Recipe {recipe.name!r} starts from {start}, a checkpoint of this package, and has "
            f"{', '.join(recipe.model)} under `model`; expected only {', '.join(sorted(OF_THE_LOSS))}, and "
            "`branched_head_mlp: true` under `vision_config`, since the checkpoint says the rest. Leave out what else."
        )
    model = from_holistic_clip(
        start,
        perspectives=fields["perspectives"],
        max_position_embeddings=fields["text_config"]["max_position_embeddings"],
        branched_head_mlp=bool(linears),
    )
    for name in OF_THE_LOSS & recipe.model.keys():
        setattr(model.config, name, recipe.model[name])
    model.config.require_valid()
    return model


FINISHED = "finished.json"
CURVES = "training.png"
UNFINISHED = ""  # in place of a run's fingerprint, while its result is being saved
TINY = "tiny"
# What a run leaves in its folder. Training again removes these names alone.
OWN_FILES = re.compile(
    r"(?:config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|processor_config"
    r"|preprocessor_config|trainer_state|finished|results|calibration|card_facts|left_out|unreadable_images|model\.safetensors\.index)\.json"
    r"|model(?:-\d+-of-\d+)?\.safetensors|merges\.txt|training_args\.bin|\w+_holistic_clip\.py|README\.md|(?:results|training|branches-[A-Za-z0-9-]*)\.png"
    rf"|\.gitattributes|\.results\.json\.lock|\.README\.md\.lock|{PARTIAL.pattern}"
)
STATE = re.compile(r"[0-9a-f]{16}")  # a fingerprint, the name of a folder in which the Trainer saves


def is_finished(checkpoint: Path, fingerprint: str) -> bool:
    """Tell whether this very run has been trained to its end."""
    has_weights = any((checkpoint / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    return has_weights and _finished_fingerprint(checkpoint) == fingerprint


def _finished_fingerprint(checkpoint: Path) -> str | None:
    """Read which run was trained to its end: None if training left no marker, `UNFINISHED` while it saves."""
    try:
        found = json.loads((checkpoint / FINISHED).read_bytes())
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return found.get("fingerprint") if isinstance(found, dict) else None


def train_run(recipe: Recipe, run: str, corpus: Path, checkpoint: Path) -> None:
    """Train a run into `checkpoint`, unless it is there; an interrupted one goes on from its last saved state.

    Raises:
        ValueError: a recipe or a corpus that cannot be used, or a folder that holds other things.
        InUseError: another process trains into `checkpoint`.
        Stopped: by a signal, after a state was saved.
    """
    fingerprint = recipe.fingerprint(run, read_manifest(corpus)["fingerprint"])
    if is_finished(checkpoint, fingerprint):
        logger.info("Already trained: %s", checkpoint)
        return
    states = _states_of(checkpoint) / fingerprint
    require_own_run(checkpoint)
    trainer = make_trainer(recipe, run, corpus, states)
    with hold_output(states.parent):
        if is_finished(checkpoint, fingerprint):
            logger.info("Already trained meanwhile: %s", checkpoint)
            return
        state = last_whole_checkpoint(states)
        if state and trainer.is_world_process_zero():
            logger.info("Going on from %s", state)
        trainer.train(resume_from_checkpoint=None if state is None else str(state))
        publish_checkpoint(trainer, checkpoint, {"fingerprint": fingerprint, "recipe": recipe.name, "run": run})
        if trainer.is_world_process_zero():
            remove_states(checkpoint)
        trainer.accelerator.wait_for_everyone()


def require_own_run(checkpoint: Path) -> None:
    """Refuse, before anything is trained, a folder that is to be replaced and was not made by training.

    Raises:
        ValueError: somebody else's files lie where the run's checkpoint or its states are to be.
    """
    states = _states_of(checkpoint)
    require_own_folder(
        states, lambda path: path == LOCK or bool(STATE.fullmatch(path.partition("/")[0])), holds="states of training"
    )
    if _finished_fingerprint(checkpoint) is None:
        # Anybody has a folder with a README or a config.json. Earlier versions put the marker last, so what they left
        # when killed while saving is known by the states beside it.
        has_begun = states.is_dir() and any(STATE.fullmatch(path.name) for path in states.iterdir())
        require_own_folder(
            checkpoint, lambda path: has_begun and bool(OWN_FILES.fullmatch(path)), holds="a checkpoint"
        )


def _states_of(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}-states")


def clear_result(checkpoint: Path) -> None:
    """Remove what training left in a run's folder, and nothing else that lies there.

    The marker stays and says from now on that no run is finished: the folder is known as ours after a kill, too.
    """
    checkpoint.mkdir(parents=True, exist_ok=True)
    _write_marker(checkpoint, {"fingerprint": UNFINISHED})
    remove_own_files(checkpoint, lambda path: path != FINISHED and bool(OWN_FILES.fullmatch(path)))


def remove_states(checkpoint: Path) -> None:
    """Remove the states of a run, and their folder if nothing else lies there."""
    states = _states_of(checkpoint)
    for path in states.iterdir() if states.is_dir() else ():
        if STATE.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
    (states / LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # there is none, or something of others lies there
        states.rmdir()


def make_trainer(recipe: Recipe, run: str, corpus: Path, states: Path) -> HolisticCLIPTrainer:
    """Return the trainer of a run, which saves into `states`."""
    train, validation, training = *_splits(recipe, corpus), dict(recipe.training)
    if validation is None:
        training |= {"eval_strategy": "no", "eval_on_start": False, "load_best_model_at_end": False}
    args = HolisticCLIPTrainingArguments(
        output_dir=str(states),
        slots=recipe.runs[run].slots,
        dataloader_pin_memory=torch.cuda.is_available(),
        **training,
    )
    require_enough_rows(train, args)  # before weights are loaded
    set_seed(recipe.seed)
    processor = make_processor(recipe, train, run)
    augmentation = recipe.augmentation
    return HolisticCLIPTrainer(
        model=make_model(recipe, run, processor.tokenizer),
        args=args,
        processing_class=processor,
        augmentation=None if augmentation is None else Augmentation(size=recipe.image_size, **_tuples(augmentation)),
        train_dataset=train,
        eval_dataset=validation,
    )


def _splits(recipe: Recipe, corpus: Path) -> tuple[Dataset, Dataset | None]:
    """Return the rows to train and to validate on. A corpus that is too small to have any of the latter trains too."""
    train = recipe_split(recipe, corpus, "train")
    try:
        return train, recipe_split(recipe, corpus, "validation")
    except EmptySplitError as error:
        logger.warning("Training goes without evaluation. %s", error)
        return train, None


def _tuples(augmentation: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in augmentation.items()}


def recipe_split(recipe: Recipe, corpus: Path, split: str) -> Dataset:
    """Return the rows of a corpus that the recipe takes for train, validation or test, captions as they are."""
    open_ours = partial(open_split, corpus, split_column=recipe.split_column, held_out=recipe.held_out)
    rows = open_ours(split)
    if not recipe.drop_near_duplicates or split == "test":
        return rows
    alike = find_near_duplicates(corpus, progress=True).beside(open_ours("test")["image_id"])
    kept = [number for number, image_id in enumerate(rows["image_id"]) if image_id not in alike]
    logger.info("%s of %s rows of %s are near-duplicates of tested ones.", len(rows) - len(kept), len(rows), split)
    if not kept:
        raise EmptySplitError(
            f"All rows of {split} of {corpus} are near-duplicates of tested ones. Leave `drop_near_duplicates` out."
        )
    return rows.select(kept)


def publish_checkpoint(trainer: HolisticCLIPTrainer, checkpoint: Path, facts: dict[str, str]) -> None:
    """Put the trained model in place; the marker comes last, so that half a checkpoint is never taken for a whole."""
    if trainer.is_world_process_zero():
        clear_result(checkpoint)
    trainer.save_result(checkpoint)
    if not trainer.is_world_process_zero():
        return
    trainer.state.save_to_json(str(checkpoint / TRAINER_STATE_NAME))
    draw_training(checkpoint)
    _write_marker(checkpoint, facts)


def draw_training(checkpoint: Path) -> None:
    """Draw loss and recall beside the weights, if matplotlib is installed and anything was logged."""
    try:
        figure = training_figure(training_curves(checkpoint))
    except (ImportError, ValueError) as error:
        logger.info("%s is not drawn: %s", CURVES, error)
        return
    with write_atomically(checkpoint / CURVES) as file:
        figure.savefig(file, format="png")


def _write_marker(checkpoint: Path, facts: dict[str, str]) -> None:
    write_json(checkpoint / FINISHED, facts)


def seconds_of_training(checkpoint: Path) -> float | None:
    """Return the seconds that the trainer measured, or None if it left no log."""
    log = checkpoint / TRAINER_STATE_NAME
    entries = json.loads(log.read_text(encoding="utf-8"))["log_history"] if log.is_file() else []
    seconds = [entry["train_runtime"] for entry in entries if "train_runtime" in entry]
    return sum(seconds) if seconds else None
