"""LLaVA with a tower of ours: `python -m training.downstream.llava [--recipe FILE] [--tiny]`.

The paper's Table 6. `HolisticCLIPPatchModel` is the vision tower of transformers' LLaVA, which is trained as LLaVA-1.5
is. First the projector alone learns, on captions, then projector and language model on conversations. The tower is
frozen. Each stage is a run of transformers' Trainer, and a run that was killed goes on where it was. In the end,
conversations that were held out are read with their own images and with those of others. The difference is what the
tower tells.

Axes: N conversations, L tokens, P patches.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import disable_progress_bars
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import (
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Trainer,
    TrainingArguments,
    logging,
    set_seed,
)

from holistic_clip_hf import HolisticCLIPPatchModel, from_clip
from holistic_clip_hf.cli.main import end_in_a_sentence
from holistic_clip_hf.evaluation.encoding import load_checkpoint
from holistic_clip_hf.evaluation.records import Record, Recorder, capture_provenance, save_records
from holistic_clip_hf.images.left_out import LeftOutLog, warn_of_all
from holistic_clip_hf.images.records import read_records
from holistic_clip_hf.initialization import make_processor
from holistic_clip_hf.publishing.consumers import carry_code, require_fitting
from holistic_clip_hf.storage import checksum, require_own_folder, write_json
from holistic_clip_hf.trainer.tiny import (
    CLIP,
    COLOURS,
    CORPUS,
    SHAPES,
    draw_shape,
    make_tiny_clip,
    make_tiny_corpus,
    reset_ingredients,
)
from training.downstream.clipcap_model import UNTRAINED
from training.downstream.language_models import TINY, make_language_model
from training.downstream.llava_data import (
    ASSISTANT,
    IMAGE,
    USER,
    Collator,
    Conversations,
    Reader,
    read_conversations,
)
from training.downstream.runs import (
    exponential_of_mean,
    fingerprint,
    parse_options,
    read_part,
    read_recipe,
    require_training,
    tiny_training,
    train_once,
    weights_digest,
)

TASK, RESULTS, LEFT_OUT = "visual_instruction", "results.json", "left_out"
PRETRAIN, FINETUNE, HELD_OUT = "pretrain", "finetune", "held_out"
OWN, OTHERS = "own", "another's"
# What each stage trains, as names of LLaVA's parameters begin; the tower is in neither.
PROJECTOR = ("model.multi_modal_projector.",)
TRAINED = {PRETRAIN: PROJECTOR, FINETUNE: (*PROJECTOR, "model.language_model.", "lm_head.")}
# As the training reads turns, so that strangers who apply it ask in the same form.
CHAT_TEMPLATE = """\
{{ %r }}{%% for message in messages %%}{{ %r if message['role'] == 'user' else %r }}\
{%% if message['content'] is string %%}{{ message['content'] }}{%% else %%}\
{%% for part in message['content'] if part['type'] == 'image' %%}{{ '<image>\\n' }}{%% endfor %%}\
{%% for part in message['content'] if part['type'] == 'text' %%}{{ part['text'] }}{%% endfor %%}{%% endif %%}\
{%% if message['role'] == 'assistant' %%}{{ %r }}{%% endif %%}{%% endfor %%}\
{%% if add_generation_prompt %%}{{ %r }}{%% endif %%}"""


@dataclass(frozen=True)
class Listing:
    """List of conversations and the folder of their images."""

    data: str
    images: str


@dataclass(frozen=True)
class Stage(Listing):
    """A stage of the training.

    Args:
        data: List of conversations, in LLaVA's JSON.
        images: Folder of their images.
        training: Fields of transformers' `TrainingArguments`, `seed` among them.
    """

    training: dict[str, Any]


@dataclass(frozen=True)
class LlavaRecipe:
    """A recipe file; see the comments at the head of `llava.yaml`.

    Args:
        name: Name of the file.
        checkpoint: Checkpoint of this package, whose tower it is.
        language_model: Name of a causal language model, or the fields of one from scratch.
        vision_feature_layer: Layer whose states are read.
        system: Text before the first turn of each conversation.
        max_tokens: Longest conversation in tokens, its image among them; longer ones are cut.
        pretrain: Stage that trains the projector, on the answers alone.
        finetune: Stage that trains projector and language model.
        held_out: Conversations that the result is measured on.
        branch: Branch whose states are read; left out, the mean over branches.
    """

    name: str
    checkpoint: str
    language_model: str | dict[str, Any]
    vision_feature_layer: int
    system: str
    max_tokens: int
    pretrain: Any
    finetune: Any
    held_out: Any
    branch: str | None = None


def load_llava_recipe(path: Path) -> LlavaRecipe:
    """Read a recipe.

    Raises:
        ValueError: keys that are unknown or lacking, values of another type.
    """
    recipe = read_recipe(path, LlavaRecipe)
    kinds = {PRETRAIN: Stage, FINETUNE: Stage, HELD_OUT: Listing}
    parts: dict[str, Any] = {
        name: read_part(f"{path}, {name}", getattr(recipe, name), kind) for name, kind in kinds.items()
    }
    for name in TRAINED:
        require_training(f"{path}, {name}, training", parts[name].training)
    return replace(recipe, **parts)


def make_llava(recipe: LlavaRecipe) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Return a LLaVA of our tower, a fresh projector and a language model, and its processor.

    Raises:
        ValueError: a tower that does not take images of one size, no such branch, too few tokens for an image.
    """
    joint, processor = load_checkpoint(recipe.checkpoint)
    vision = joint.vision_model.config
    if vision.takes_patches:
        raise ValueError(
            f"`checkpoint` is {recipe.checkpoint}, whose tower takes images of any shape; expected one of a fixed "
            "size, since LLaVA gives every image the same number of tokens. Take another checkpoint."
        )
    patches = math.prod(joint.vision_model.patch_grid(vision.image_size, vision.image_size))
    if patches >= recipe.max_tokens:
        raise ValueError(
            f"`max_tokens` is {recipe.max_tokens}; expected more than {patches}, which an image takes alone. Raise it."
        )
    tower = HolisticCLIPPatchModel.from_model(joint, branch=recipe.branch, class_token=True).cpu()
    language_model, tokenizer = make_language_model(recipe.language_model, _texts(recipe), recipe.max_tokens)
    if tokenizer.convert_tokens_to_ids(IMAGE) in (None, tokenizer.unk_token_id):
        tokenizer.add_tokens([IMAGE], special_tokens=True)
        language_model.resize_token_embeddings(max(len(tokenizer), language_model.config.vocab_size))
    template = CHAT_TEMPLATE % (recipe.system, USER, f"{ASSISTANT} ", tokenizer.eos_token, ASSISTANT)
    return _joined(recipe, tower, language_model, tokenizer.convert_tokens_to_ids(IMAGE), patches), LlavaProcessor(
        processor.image_processor,
        tokenizer,
        patch_size=vision.image_size // math.isqrt(patches),
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the first state, which `default` drops
        chat_template=template,
    )


def _joined(recipe: LlavaRecipe, tower: Any, language_model: Any, image_token: int, patches: int) -> Any:
    """Join a tower and a language model by a fresh projector."""
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=language_model.config,
        image_token_index=image_token,
        image_seq_length=patches,
        vision_feature_layer=recipe.vision_feature_layer,
        vision_feature_select_strategy="default",
    )
    require_fitting(config)
    llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower.load_state_dict(tower.state_dict())
    llava.model.language_model.load_state_dict(language_model.base_model.state_dict())
    llava.lm_head.load_state_dict(language_model.get_output_embeddings().state_dict())
    return llava


def _texts(recipe: LlavaRecipe) -> Iterator[str]:
    """Yield the texts that a tokenizer from scratch is trained on."""
    for stage in (recipe.pretrain, recipe.finetune):
        for _, record in read_records(Path(stage.data)):
            turns = record.get("conversations", ()) if not isinstance(record, str) else ()
            yield from (f"{USER}{turn['value']}{ASSISTANT}" for turn in turns if isinstance(turn.get("value"), str))


@dataclass(frozen=True)
class Bench:
    """Recipe and the folder of its results."""

    recipe: LlavaRecipe
    folder: Path

    def mark(self, stage: str) -> str:
        """Return a hash that changes with all that the result of a stage depends on."""
        recipe = replace(self.recipe, name="", held_out=None)
        kept = recipe if stage == FINETUNE else replace(recipe, finetune=None)
        lists = [part.data for part in (kept.pretrain, kept.finetune) if part is not None]
        return fingerprint(kept, weights_digest(recipe.checkpoint), *(checksum(Path(each)) for each in lists))

    def data(self, part: str, processor: LlavaProcessor, num_image_tokens: int) -> Conversations:
        """Return the conversations of a stage or of `held_out`; what is left out is listed in a file."""
        recipe, listing, log = self.recipe, getattr(self.recipe, part), LeftOutLog()
        folder, special = Path(listing.images), processor.tokenizer.all_special_tokens
        found = read_conversations(Path(listing.data), folder, special, log, needs_image=part == PRETRAIN)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"{LEFT_OUT}-{part}.json", log.reasons)
        warn_of_all(len(log.reasons), f" They are listed in {self.folder / f'{LEFT_OUT}-{part}.json'}.")
        reader = Reader(
            processor.tokenizer, num_image_tokens, recipe.max_tokens, recipe.system, plain=part == PRETRAIN
        )
        images = AutoProcessor.from_pretrained(recipe.checkpoint, trust_remote_code=False)
        return Conversations(found, folder, reader, images)


class LlavaTrainer(Trainer):
    """Trainer of a LLaVA: its tower stays in evaluation mode, and its checkpoints are read by the names they have."""

    def compute_loss(self, model: Any, *given: Any, **options: Any) -> Any:
        # So that nothing is dropped in the tower, and batch norms in it keep their statistics.
        self.accelerator.unwrap_model(model).model.vision_tower.eval()
        return super().compute_loss(model, *given, **options)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # their checkpoints have the model's own names
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        # `save_pretrained` writes LLaVA's weights under older names, none of which the Trainer of transformers 5.23
        # finds again. It would warn, and go on with the weights of the first step.
        saved = LlavaForConditionalGeneration.from_pretrained(resume_from_checkpoint, dtype=torch.float32)
        (self.model if model is None else model).load_state_dict(saved.state_dict())


def train_stage(bench: Bench, stage: str) -> None:
    """Train a stage unless that is done; the second goes on from the first's result."""
    recipe, settings = bench.recipe, getattr(bench.recipe, stage)
    kept: dict[str, Any] = {}

    def make(states: Path) -> Trainer:
        set_seed(settings.training["seed"])
        if stage == PRETRAIN:
            model, processor = make_llava(recipe)
        else:
            model = LlavaForConditionalGeneration.from_pretrained(bench.folder / PRETRAIN, dtype=torch.float32)
            processor = AutoProcessor.from_pretrained(bench.folder / PRETRAIN)
        kept["processor"] = processor
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(TRAINED[stage]))
        return LlavaTrainer(
            model=model,
            args=TrainingArguments(output_dir=str(states), remove_unused_columns=False, **settings.training),
            data_collator=Collator(processor.tokenizer.pad_token_id),
            train_dataset=bench.data(stage, processor, model.config.image_seq_length),
        )

    def finish(folder: Path) -> None:
        kept["processor"].save_pretrained(folder)
        carry_code(folder)

    train_once(bench.folder / stage, bench.mark(stage), make, finish)


@torch.no_grad()
def measure(bench: Bench) -> list[Record]:
    """Measure how likely the answers of held-out conversations are, with their own images and with those of others.

    Perplexity is the exponential of a mean over conversations about images, each of which counts alike.

    Raises:
        ValueError: fewer than two conversations about images.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = LlavaForConditionalGeneration.from_pretrained(bench.folder / FINETUNE).to(device).eval()
    processor = AutoProcessor.from_pretrained(bench.folder / FINETUNE)
    data = bench.data(HELD_OUT, processor, model.config.image_seq_length)
    rows = [index for index, each in enumerate(data.conversations) if each.image is not None]
    if len(rows) < 2:
        raise ValueError(
            f"`held_out` has {len(rows)} conversations about images; expected two or more, whose images are exchanged."
        )
    losses: dict[str, list[float]] = {OWN: [], OTHERS: []}
    for place, row in enumerate(tqdm(rows, desc="conversations read")):
        own, other = data[row], data[rows[place - 1]]
        for name, source in ((OWN, own), (OTHERS, other)):
            losses[name].append(_loss(model, {**own, "pixel_values": source["pixel_values"]}))
    seed = int(bench.recipe.finetune.training["seed"])
    name, split = Path(bench.recipe.held_out.data).stem, HELD_OUT
    recorder = Recorder(capture_provenance(model=bench.recipe.name, dataset=name, split=split, seed=seed), TASK)
    differences = [own - other for own, other in zip(losses[OWN], losses[OTHERS], strict=True)]
    measured = [("perplexity", OWN, losses[OWN]), ("perplexity", OTHERS, losses[OTHERS])]
    records = []
    for metric, images, values in [*measured, ("perplexity_ratio", f"{OWN} against {OTHERS}", differences)]:
        value, ends = exponential_of_mean(values, seed)
        records.append(
            recorder.record(
                metric,
                value,
                {"images": images, "branch": bench.recipe.branch or "mean"},
                {"n_conversations": len(rows)},
                confidence_interval=ends,
            )
        )
    return records


def _loss(model: LlavaForConditionalGeneration, row: dict[str, Tensor]) -> float:
    """Return the mean negative log likelihood of a conversation's answers."""
    ids, labels, pixels = (row[name][None].to(model.device) for name in ("input_ids", "labels", "pixel_values"))
    logits = model(input_ids=ids, pixel_values=pixels).logits.float()
    return float(F.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=UNTRAINED))


def table_of(records: Sequence[Record]) -> str:
    """Return a line for each number, with its interval of 95 %."""
    lines = [f"{'images':24}{'metric':20}{'value':>10}  interval"]
    for record in records:
        low, high = record.confidence_interval or (math.nan, math.nan)
        images = str(record.details["images"])
        lines.append(f"{images:24}{record.metric:20}{record.value:10.3f}  [{low:.3f}, {high:.3f}]")
    return "\n".join(lines)


def run_recipe(recipe: LlavaRecipe, folder: Path) -> list[Record]:
    """Train both stages, measure, and print the table; of several processes the first one measures.

    Args:
        recipe: Recipe.
        folder: Folder of its results.
    """
    bench = Bench(recipe, folder)
    for stage in TRAINED:
        print(f"== {stage}", flush=True)
        train_stage(bench, stage)
    if not PartialState().is_main_process:
        return []
    records = measure(bench)
    save_records(folder / RESULTS, records)
    print(f"== answers of {recipe.held_out.data}")
    print(table_of(records))
    print(f"LLaVA  {folder / FINETUNE}")
    return records


DRAWN = re.compile(r"(?:pretrain|finetune|held_out)\.json|[a-z]+-[a-z]+\.png")


def make_tiny(recipe: LlavaRecipe, ingredients: Path, drawings: Path) -> LlavaRecipe:
    """Return the recipe at its smallest, with drawings, conversations about them, and a random checkpoint.

    Args:
        recipe: Recipe as it is.
        ingredients: Folder for the checkpoint; what an earlier call left there is replaced.
        drawings: Folder for drawings and conversations; likewise.
    """
    reset_ingredients(ingredients)
    require_own_folder(drawings, lambda path: bool(DRAWN.fullmatch(path)), holds="what --tiny draws")
    drawings.mkdir(parents=True, exist_ok=True)
    make_tiny_corpus(ingredients / CORPUS, ["short"], "split")  # by which the folder is known as ours again
    make_tiny_clip(ingredients / CLIP)
    names = [recipe.branch, "other"] if recipe.branch else ["short", "style"]
    vision = {"branch_type": "mlp", "num_branch_layers": 1}
    model = from_clip(ingredients / CLIP, perspectives=names, vision_config=vision, perturbation=1.0)
    for part in (model, make_processor(model, ingredients / CLIP)):
        part.save_pretrained(ingredients / CLIP)
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    for colour, shape in pairs:
        draw_shape(colour, shape).save(drawings / f"{colour}-{shape}.png")
    stages: dict[str, Any] = {}
    for part in (PRETRAIN, FINETUNE, HELD_OUT):
        write_json(drawings / f"{part}.json", [_conversation(*pair, part) for pair in pairs] + _WITHOUT_IMAGE)
        stages[part] = replace(getattr(recipe, part), data=str(drawings / f"{part}.json"), images=str(drawings))
    for part in TRAINED:
        stages[part] = replace(stages[part], training=tiny_training(stages[part].training))
    return replace(recipe, checkpoint=str(ingredients / CLIP), language_model=TINY["llama"], max_tokens=256, **stages)


_WITHOUT_IMAGE = [
    {"id": "text", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good day."}]}
]


def _conversation(colour: str, shape: str, part: str) -> dict[str, Any]:
    turns = [(f"{IMAGE}\nDescribe it.", f"A {colour} {shape}.")]
    if part != PRETRAIN:
        turns = [(f"What is the colour?\n{IMAGE}", f"It is {colour}."), ("And the shape?", f"A {shape}.")]
    told = [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)]
    return {"id": f"{colour}-{shape}", "image": f"{colour}-{shape}.png", "conversations": told}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a recipe, as the command line says."""
    options = parse_options("llava", __doc__, arguments)
    with end_in_a_sentence("python -m training.downstream.llava"):
        disable_progress_bars()
        logging.disable_progress_bar()
        recipe = load_llava_recipe(options.recipe)
        folder = options.output_dir / ("tiny" if options.tiny else "") / recipe.name
        if options.tiny:
            recipe = make_tiny(recipe, folder / "ingredients", folder / "drawings")
        run_recipe(recipe, folder)


if __name__ == "__main__":
    main()
