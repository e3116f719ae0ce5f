# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Fine-tuning of a checkpoint on a corpus of one's own: settings that fit its size, as a recipe like any other.

The branches of a warm start begin as copies, so that the model gives the checkpoint's answer before its first step.
They part because what is a branch's own learns faster than the rest.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from transformers import AutoConfig, AutoModel, CLIPConfig, MetaClip2Config, PreTrainedConfig, SiglipConfig

from ..checkpoint_files import require_loadable
from ..configuration_holistic_clip import HolisticCLIPConfig, require_own_attention
from ..images.decoding import NOT_READ
from ..images.sources import Skipped
from ..initialization import load_image_processor, saved_caption_form
from ..options_holistic_clip import write_caption
from ..processing_holistic_clip import clean_caption
from ..storage import require_free_space, write_text
from .recipes import load_tokenizer, size_seen

EXPECTED_BASE = (
    "expected a CLIP, MetaCLIP 2, SigLIP or a checkpoint of this package, by its folder or its name on the Hub"
)
RUN = "model"  # the only run of such a recipe, and the name of its folder
# As CLIP is fine-tuned contrastively (FLYP, https://arxiv.org/abs/2212.00638, section 4: 1e-5 for ViT-B/16). Towers of
# the quickstart's size take ten times that: training/LOG.md.
LEARNING_RATE, SMALL_LEARNING_RATE, SMALL_WIDTH = 1e-5, 1e-4, 256
# Adam moves a number by the rate, whatever its gradient: at one rate, copies stay copies. Branched MLPs at ten times
# the rate were best by name in a trial, single class tokens need more. Probes come with linears of their own, of which
# the first branch's learn as fast as the others'. Faster, they learn the photos by heart: training/LOG.md.
BRANCH_RATES = {"mlp": 10.0, "cls": 30.0, "probe": 5.0}
BRANCH_PATTERNS = {
    "mlp": ["*.branch_*"],
    "cls": ["*.branch_*"],
    "probe": ["*.branch_*", "*.head.probe", "*.head.mlp.fc2.*"],
}
# Similarity above which branches are pushed apart. The default of pretraining, 0.7, costs recall on few photos.
DIVERSITY_THRESHOLD = 0.8
# Weight of the fused term. At 1, the default of pretraining, probes learn each other's captions as well as their own,
# and naming one changes little. At 0 the branch of titles is worse. Five folds: training/studies/photos/README.md.
FUSED_WEIGHT = 0.25
BRANCH_LAYERS = 3  # at the end of a CLIP, as in the paper
STEPS = 300  # that a few hundred images are given at least, so that branches have time to part
LEAST_EPOCHS, MOST_EPOCHS = 5, 30
LARGEST_BATCH = {"cpu": 32, "cuda": 256}
LEAST_BATCHES = 4  # of an epoch
RECIPE_HEAD = """# Written anew by each `holistic-clip finetune`. To change it, run `holistic-clip train` by a copy.
"""
WARMUP = 0.1  # of all steps
TOWER = "vision tower"  # a choice
LOGS = 50  # lines of loss in all
# Beginnings of the reasons why photos were left out, with the largest share of them all, and what to do. Above it the
# folder or the list was read wrongly: a table in another encoding loses each line with an accent.
MOST_LEFT_OUT = {
    ("does not decode", "no image", "0 bytes"): (0.5, "Copy the photos anew, or remove the broken ones."),
    (NOT_READ,): (0.5, "Convert them, as with `magick mogrify -format jpg *.heic`."),
    ("not in UTF-8",): (0.1, "Name the encoding of the list, as `--encoding cp1252`."),
}
MOST_NAMED = 3  # photos, in a refusal
# Copies of the weights on the disk at once: two states, each with weights and two moments of Adam, and the result.
COPIES_OF_WEIGHTS, BYTES_OF_WEIGHT = 7, 4


@dataclass(frozen=True)
class Base:
    """Facts of the checkpoint that is fine-tuned.

    Args:
        name: Name on the Hub, or folder.
        branches: Names of its branches; none if it is a checkpoint of another family.
        branch_type: Kind of its branches; `mlp` for those that a CLIP is given, `probe` for SigLIP's.
        width: E, of the vision tower.
        layers: Layers of the vision tower.
        image_size: Side of the square that it sees.
        max_length: Tokens of a text.
        caption_form: Form that its captions had in training, which they keep. Default: none.
    """

    name: str
    branches: Sequence[str]
    branch_type: str
    width: int
    layers: int
    image_size: int
    max_length: int
    caption_form: str | None = None


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen, and why."""

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.name} {self.value}: {self.reason}"


def read_base(name: str) -> Base:
    """Read what has to be known of a checkpoint, without its weights.

    Raises:
        ValueError: none of `EXPECTED_BASE`, or a folder that is not safe to load.
    """
    if Path(name).is_dir():
        require_loadable(name, "base")
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).is_dir():
        raise ValueError(f"`base` is {name}, which is not a folder; {EXPECTED_BASE}. Correct the path.")
    with _refusing(name):
        require_own_attention(PreTrainedConfig.get_config_dict(name)[0])
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if not isinstance(config, CLIPConfig | MetaClip2Config | SiglipConfig | HolisticCLIPConfig):
        raise ValueError(f"`base` is {name}, a checkpoint of {config.model_type!r}; {EXPECTED_BASE}.")
    with _refusing(name):
        seen = size_seen(load_image_processor(name))
        tokenizer = load_tokenizer(name)
        is_ours = isinstance(config, HolisticCLIPConfig)
        form = saved_caption_form(name)[0] if is_ours else None
    vision = cast(Any, config.vision_config)
    positions = cast(Any, config.text_config).max_position_embeddings
    return Base(
        name=name,
        branches=list(config.perspectives) if is_ours else [],
        branch_type=vision.branch_type if is_ours else "probe" if isinstance(config, SiglipConfig) else "mlp",
        width=vision.hidden_size,
        layers=vision.num_hidden_layers,
        image_size=seen["height"],
        max_length=min(tokenizer.model_max_length, positions),
        caption_form=form,
    )


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Raise a `ValueError` about the base for what transformers cannot read of it."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"`base` is {name}; {EXPECTED_BASE}. transformers says: {reason}.") from error


def require_probes(base: Base) -> None:
    """Refuse a base whose tower cannot be frozen below its branches.

    Raises:
        ValueError: its branches are part of the tower.
    """
    if base.branch_type != "probe":
        raise ValueError(
            f"`freeze_tower` is set and `base` is {base.name}, whose branches are part of its tower "
            f"({base.branch_type}); expected a SigLIP, or a checkpoint with probes. Leave it out, or name another "
            "base."
        )


def require_few_left_out(num_rows: int, left_out: Iterable[Skipped]) -> None:
    """Refuse a corpus that lost most of its photos, or many lines of its list, to damage.

    Args:
        num_rows: Images of the corpus.
        left_out: Images and lines that were left out, with their reasons.

    Raises:
        ValueError: more was left out for one reason than single faults explain.
    """
    items = list(left_out)
    for begins, (most, remedy) in MOST_LEFT_OUT.items():
        found = [item for item in items if item.reason.startswith(begins)]
        if len(found) > most * (num_rows + len(found)):
            told = ", ".join(dict.fromkeys(re.split("[:;]", item.reason)[0] for item in found))
            raise ValueError(
                f"{len(found):,} of {num_rows + len(found):,} photos were left out ({told}), the first "
                f"{', '.join(item.item for item in found[:MOST_NAMED])}; expected at most {most:.0%}. {remedy}"
            )


def require_telling_captions(captions: Iterable[Sequence[Mapping[str, str]]]) -> None:
    """Refuse captions from which nothing can be learned.

    Args:
        captions: Captions of each training image, with their `perspective` and `text`.

    Raises:
        ValueError: all captions are one text, or two perspectives have the same texts of each image.
    """
    found: dict[str, list[frozenset[str]]] = {}
    for number, of_image in enumerate(captions):
        for caption in of_image:
            texts = found.setdefault(caption["perspective"], [])
            texts.extend([frozenset()] * (number + 1 - len(texts)))
            texts[number] |= {caption["text"].strip()}
    distinct = [set().union(*texts) for texts in found.values()]
    if max(map(len, distinct)) == 1 and max(map(len, found.values())) > 1:
        told = " or ".join(repr(text) for text in sorted(set().union(*distinct)))
        raise ValueError(
            f"All captions are {told}; expected captions that tell the photos apart. Correct them, or name another "
            "column with `--caption`."
        )
    for first, second in combinations(found, 2):
        both = [pair for pair in zip(found[first], found[second], strict=False) if all(pair)]
        if both and all(one == other for one, other in both):
            raise ValueError(
                f"The perspectives {first} and {second} have the same captions; expected texts that differ, as each "
                "becomes a branch of its own. Leave one out, by naming the others with `--caption`."
            )


def require_space(directory: Path, base: Base) -> None:
    """Refuse a disk without room for the training's states and the result.

    Args:
        directory: Folder that the run writes into.
        base: Checkpoint that is fine-tuned.

    Raises:
        OSError: less is free.
    """
    config = AutoConfig.from_pretrained(base.name, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=False)
    needed = BYTES_OF_WEIGHT * model.num_parameters() * COPIES_OF_WEIGHTS
    require_free_space(directory, needed, "the training", "choose an `--output` on another disk. Nothing was trained")


def order_of_branches(base: Base, perspectives: Sequence[str]) -> list[str]:
    """Return the branches of the result: those of the base that have captions, then the new ones."""
    kept = [name for name in base.branches if name in perspectives]
    return [*kept, *(name for name in perspectives if name not in kept)]


def require_length(base: Base, max_length: int | None) -> None:
    """Raise `ValueError` for fewer tokens of a caption than the base reads."""
    if max_length is not None and max_length < base.max_length:
        raise ValueError(
            f"`max_length` is {max_length}; expected {base.max_length}, which the base reads, or more. Leave it out, "
            "or shorten the captions."
        )


def caption_lengths(base: Base, captions: Iterable[Sequence[Mapping[str, str]]]) -> list[int]:
    """Return the number of tokens of each distinct caption, as the base's tokenizer counts them.

    Args:
        base: Checkpoint that is fine-tuned.
        captions: Captions of each training image, with their `perspective` and `text`.
    """
    form = base.caption_form or "{text}"
    texts = list(
        {
            clean_caption(write_caption(form, caption["perspective"], caption["text"]))
            for of_image in captions
            for caption in of_image
        }
    )
    tokenizer = load_tokenizer(base.name)
    return [len(tokens) for tokens in tokenizer(texts, verbose=False)["input_ids"]] if texts else []


def choose_settings(num_rows: int, base: Base, given: Mapping[str, Any], lengths: Sequence[int] = ()) -> list[Choice]:
    """Choose the settings of training by the number of images, the device and the base; `given` ones stand.

    Args:
        num_rows: Number of training images.
        base: Checkpoint that is fine-tuned.
        given: Values by name of `batch_size`, `epochs`, `learning_rate`, `max_length`, `freeze_tower`; `None` where
            nothing is asked for.
        lengths: Tokens of each caption.

    Raises:
        ValueError: fewer than two images.
    """
    if num_rows < 2:
        raise ValueError(
            f"The corpus has {num_rows} image(s) to train on; expected two or more, since an image is told from "
            "others. Add images, or lower the shares of validation and test."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    room = 2 ** int(math.log2(max(2, num_rows / LEAST_BATCHES)))
    batch = given.get("batch_size") or min(LARGEST_BATCH[device], room)
    batches = max(1, num_rows // batch)
    epochs = given.get("epochs") or min(MOST_EPOCHS, max(LEAST_EPOCHS, math.ceil(STEPS / batches)))
    most = f"{MOST_EPOCHS} epochs"
    is_small = base.width <= SMALL_WIDTH
    rate = given.get("learning_rate") or (SMALL_LEARNING_RATE if is_small else LEARNING_RATE)
    of_branches = BRANCH_RATES[base.branch_type]
    why = {name: "as asked for" for name, value in given.items() if value}
    frozen = [Choice(TOWER, "frozen", "as asked for; what it says of each image is computed once, and kept")]
    return [
        _choose_length(base, given.get("max_length"), lengths),
        Choice("batch size", batch, why.get("batch_size", f"{num_rows:,} images on {device}, {batches} batches")),
        Choice("epochs", epochs, why.get("epochs", f"{epochs * batches:,} steps; {most} or {STEPS} steps are enough")),
        Choice("learning rate", rate, why.get("learning_rate", f"towers of width {base.width}")),
        Choice("rate of branches", f"{of_branches:g} x", "copies part only if they learn faster than the rest"),
        Choice("warm-up steps", max(1, round(WARMUP * epochs * batches)), f"{WARMUP:.0%} of the training"),
        Choice("steps between lines of loss", max(1, round(epochs * batches / LOGS)), f"about {LOGS} lines"),
        *(frozen if given.get("freeze_tower") else []),
    ]


def _choose_length(base: Base, given: int | None, lengths: Sequence[int]) -> Choice:
    """Choose how many tokens of a caption are read: the base's, since stretched positions change its answers."""
    length = given or base.max_length
    num_cut = sum(each > length for each in lengths)
    reason = "as asked for" if given else "as the base reads"
    if num_cut:
        reason += (
            f". {num_cut:,} of {len(lengths):,} captions are longer and cut; `--max-length {max(lengths)}` reads all"
        )
    return Choice("tokens of a caption", length, reason)


def make_recipe(
    base: Base, branches: Sequence[str], choices: Sequence[Choice], corpus: Path, seed: int
) -> dict[str, Any]:
    """Return the content of a recipe file that `load_recipe` reads."""
    chosen = {choice.name: choice.value for choice in choices}
    branched: dict[str, Any] = {"branched_head_mlp": True}
    if not base.branches:
        branched["branch_type"] = base.branch_type
    if base.branch_type != "probe":
        branched = {"branch_type": base.branch_type, "num_branch_layers": min(BRANCH_LAYERS, base.layers)}
    model: dict[str, Any] = {} if base.branches and base.branch_type != "probe" else {"vision_config": branched}
    rates = dict.fromkeys(BRANCH_PATTERNS[base.branch_type], BRANCH_RATES[base.branch_type])
    if len(branches) == 1:
        model, rates = ({} if base.branches else model), {}
    elif base.branch_type == "probe":
        model |= {"diversity_threshold": DIVERSITY_THRESHOLD, "fused_weight": FUSED_WEIGHT}
    return {
        "corpus": str(corpus),
        "split_column": "split",
        "image_size": base.image_size,
        "start_from": base.name,
        "tokenizer": {"checkpoint": base.name, "max_length": chosen["tokens of a caption"]},
        "model": model,
        **({"caption_form": base.caption_form} if base.caption_form else {}),
        "training": {
            "seed": seed,
            **({"freeze_tower": True} if TOWER in chosen else {}),
            "num_train_epochs": chosen["epochs"],
            "per_device_train_batch_size": chosen["batch size"],
            "per_device_eval_batch_size": chosen["batch size"],
            "learning_rate": chosen["learning rate"],
            **({"learning_rate_multipliers": rates} if rates else {}),
            "warmup_steps": chosen["warm-up steps"],
            "logging_steps": chosen["steps between lines of loss"],
            "logging_first_step": True,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "save_total_limit": 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": "text_to_image_recall@5",
            "greater_is_better": True,
        },
        "runs": {RUN: {"perspectives": list(branches), "slots": list(branches)}},
    }


def write_recipe(path: Path, recipe: Mapping[str, Any]) -> None:
    """Write a recipe that `holistic-clip train --recipe` takes, too."""
    text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
    write_text(path, RECIPE_HEAD + text)
