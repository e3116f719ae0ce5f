# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Training arguments: `TrainingArguments`, what contrastive training with several captions adds, and their checks.

What cannot be right is refused before training begins.
"""

import logging
import math
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import CLIPTextConfig, PreTrainedTokenizerBase, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import HubStrategy, IntervalStrategy
from transformers.utils import is_peft_available

from ..configuration_holistic_clip import LEGACY_END, HolisticCLIPConfig
from ..corpus.build import require_perspectives
from ..loss_holistic_clip import FREE
from .distributed import gather_objects, sum_over_ranks
from .tower_states import DTYPES


@dataclass(repr=False)  # the inherited one hides tokens
class HolisticCLIPTrainingArguments(TrainingArguments):
    """`TrainingArguments`; only what differs stands here. Defaults are those of the paper's released `train.sh`.

    Patterns name parameters as in `model.named_parameters()`, with `*`, `?` and `[...]` as in file names:
    `text_model.*` is the text tower, `vision_model.encoder.layers.[0-5].*` the first six layers of the vision tower.
    """

    slots: list[str] | None = field(
        default=None,
        metadata={"help": "Perspectives to train on. Default: the model's own. H=1 with several is one-to-many."},
    )
    captions_per_image: int | None = field(
        default=None,
        metadata={"help": "Captions drawn per image and epoch; the text tower reads only these. Default: all."},
    )
    sentences_per_caption: int | None = field(
        default=None,
        metadata={"help": "Of captions of several sentences, 1 to this many are drawn in each epoch. Default: whole."},
    )
    gradient_cache_size: int | None = field(
        default=None,
        metadata={"help": "Images encoded at a time; the gradients stay those of the whole batch. Default: all."},
    )
    loss_chunk_size: int | None = field(
        default=None, metadata={"help": "Images whose logits are held at a time. Default: the loss's own."}
    )
    logit_scale_max: float = field(
        default=100.0, metadata={"help": "The inverse temperature is clamped to 1 ... this after every step."}
    )
    frozen: list[str] = field(default_factory=list, metadata={"help": "Patterns of parameters that are not trained."})
    freeze_tower: bool = field(
        default=False,
        metadata={"help": "Freeze the vision tower below its probes, and train on its states, computed once."},
    )
    states_folder: str | None = field(
        default=None,
        metadata={"help": "Folder of these states. Default: one in the cache, by a hash of tower and images."},
    )
    states_dtype: str = field(
        default="float16", metadata={"help": "Type of number of these states: float16, or float32 for exact ones."}
    )
    augmented_views: int | None = field(
        default=None,
        metadata={"help": "Augmented views of a training image that have states; epochs take turns. Default: none."},
    )
    learning_rate_multipliers: dict[str, float] | str = field(
        default_factory=dict,
        metadata={"help": "Pattern to factor on the learning rate, as JSON; a parameter takes the first that fits."},
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Keep a moving average of the weights, evaluate it, and end with it. Default: none."},
    )
    per_device_train_batch_size: int = field(default=256, metadata={"help": "Images per device."})
    num_train_epochs: float = field(default=100, metadata={"help": "Passes over the images."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.2, metadata={"help": "Not on biases, norms, class tokens, positions."})
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW's second decay rate."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "AdamW's epsilon."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 switches it off."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=2000, metadata={"help": "Steps of linear warm-up, or their share if below 1."})
    # Global negatives need batches of equal size; evaluation still sees every row.
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the last partial batch of training."})
    # Every parameter takes part in every step, and to look for those that do not costs time.
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={"help": "Look for parameters without a gradient in each step of data parallel training."},
    )
    # The collator reads raw columns.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Keep corpus columns for the collator."})

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "learning_rate_multipliers"]  # may come as JSON

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataloader_persistent_workers:
            raise ValueError(
                "`dataloader_persistent_workers=True` would repeat the random draws of the first epoch for ever: "
                "workers that stay do not learn which epoch it is. Leave it off."
            )
        if self.accelerator_config.dispatch_batches:
            raise ValueError(
                "`accelerator_config.dispatch_batches=True` would read and decode all images in the first process. "
                "Leave it out: each process reads its own share, of a stream too."
            )
        if not self.logit_scale_max >= 1:  # NaN is not
            raise ValueError(f"`logit_scale_max` is {self.logit_scale_max}; expected 1 or more, such as 100 in CLIP.")
        counts = ("captions_per_image", "sentences_per_caption", "gradient_cache_size", "loss_chunk_size")
        for name in (*counts, "augmented_views"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}; expected 1 or more, or leave it out.")
        self._require_steps()
        self._require_states()
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"`ema_decay` is {self.ema_decay}; expected between 0 and 1, such as 0.999.")
        if self.push_to_hub and self.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"`hub_strategy={self.hub_strategy.value!r}` would put the optimizer's state on the Hub, which is a "
                "pickle. Leave it out: the result is pushed, once, when training ends."
            )
        wrong = {pattern: factor for pattern, factor in self.multipliers.items() if not 0 <= factor < math.inf}
        if wrong:
            raise ValueError(f"`learning_rate_multipliers` has {wrong}; expected 0 or more, and finite.")

    def _require_steps(self) -> None:
        """Refuse numbers with which no step would be taken, or none that learns."""
        size = self.per_device_train_batch_size
        if size < 1 or size * self.world_size < 2:
            raise ValueError(
                f"`per_device_train_batch_size` is {size}, in {self.world_size} process(es); expected 2 or more in "
                "all, since an image alone has no other to be told from. Raise it; `gradient_cache_size` makes "
                "large batches fit."
            )
        if self.max_steps <= 0 and not 0 < self.num_train_epochs < math.inf:
            raise ValueError(
                f"`num_train_epochs` is {self.num_train_epochs}; expected above 0, unless `max_steps` is. Raise it."
            )
        for name in ("learning_rate", "warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` is {getattr(self, name)}; expected 0 or more. Correct it.")
        self._require_reporters()

    def _require_states(self) -> None:
        """Refuse settings of the states of a frozen tower that have no use, or none that is known."""
        if self.states_dtype not in DTYPES:
            raise ValueError(f"`states_dtype` is {self.states_dtype!r}; expected {' or '.join(DTYPES)}. Correct it.")
        unused = [name for name in ("states_folder", "augmented_views") if getattr(self, name) is not None]
        if unused and not self.freeze_tower:
            raise ValueError(
                f"`{unused[0]}` is {getattr(self, unused[0])} without `freeze_tower`; expected both, since only a "
                "frozen tower's states are kept. Set `freeze_tower`, or leave it out."
            )
        if self.states_folder is not None and Path(self.states_folder).resolve() == Path(self.output_dir).resolve():
            raise ValueError(
                f"`states_folder` is {self.states_folder}, which is `output_dir` as well; expected a folder of its "
                "own. Name another, such as one inside it."
            )

    def _require_reporters(self) -> None:
        installed = get_available_reporting_integrations()
        # Of flyte alone transformers does not say here that it is installed.
        known = INTEGRATION_TO_CALLBACK.keys() - {"flyte"}
        if missing := [each for each in self.report_to if each in known and each not in installed]:
            raise ValueError(
                f"`report_to` is {', '.join(missing)}, which is not installed; expected "
                f"{' or '.join([*installed, 'none'])}. Install it, or leave `report_to` out."
            )

    @property
    def multipliers(self) -> dict[str, float]:
        """`learning_rate_multipliers` as a dictionary, also where it came as JSON."""
        assert isinstance(self.learning_rate_multipliers, dict)  # the parent class has read the JSON
        return self.learning_rate_multipliers


logger = logging.getLogger(__name__)

COLUMNS = ("image_id", "image", "captions")


def datasets_of(given: Any) -> list[Any]:
    """Return one dataset, several by name, or none, as `Trainer` takes them."""
    return [each for each in (given.values() if isinstance(given, dict) else [given]) if each is not None]


def require_parts(processor: Any, args: HolisticCLIPTrainingArguments, given: Mapping[str, Any]) -> None:
    """Raise `ValueError` for parts of the inherited trainer that this one cannot do with.

    Args:
        processor: Processor of the trainer.
        args: Arguments of the trainer.
        given: Further keywords of the trainer.
    """
    if not hasattr(processor, "nested_captions"):
        raise ValueError(
            f"`processing_class` is {type(processor).__name__}; expected HolisticCLIPProcessor, which reads several "
            "captions of an image. Make one: `HolisticCLIPProcessor(processor.image_processor, processor.tokenizer)`."
        )
    if given.get("model_init") is not None:
        raise ValueError("`model_init` is given; expected `model` alone. Make a trainer for each model.")
    if given.get("optimizers", (None, None))[0] is not None and args.multipliers:
        raise ValueError(
            "`optimizers` has an optimizer, on which `learning_rate_multipliers` have no effect; expected one of the "
            "two. Leave the multipliers out, and put them into the optimizer's parameter groups."
        )


def require_corpus(given: Any, slots: list[str], *, name: str) -> None:
    """Raise `ValueError` unless every dataset has the columns of a corpus and captions for all slots.

    Of a stream, only its columns are known, where it says them.
    """
    for dataset in datasets_of(given):
        columns = getattr(dataset, "column_names", None) or COLUMNS
        if absent := [column for column in COLUMNS if column not in columns]:
            raise ValueError(
                f"`{name}` has no column {absent}; it has {sorted(columns)}. A corpus has {list(COLUMNS)}: rename, or "
                f"build one with `holistic_clip_hf.corpus`."
            )
        if slots and isinstance(dataset, Dataset):
            require_perspectives(dataset, slots, name=name)


def require_enough_rows(given: Any, args: HolisticCLIPTrainingArguments) -> None:
    """Raise `ValueError` for fewer rows than one step takes. Of a stream, their number is not known."""
    rows, size, ranks = _num_rows(given), args.per_device_train_batch_size, args.world_size
    if rows is None:
        return
    if args.dataloader_drop_last and rows < size * ranks:
        told, most = f" in each of {ranks} processes" if ranks > 1 else "", rows // ranks
        expected = f"at most {most}" if most * ranks >= 2 else "more rows"
        raise ValueError(
            f"`per_device_train_batch_size` is {size}{told}, and the training split has {rows} rows; expected "
            f"{expected}, or no step would be taken. {'Lower it, or add' if most * ranks >= 2 else 'Add'} images."
        )


def _num_rows(given: Any) -> int | None:
    """Return the number of rows, or `None` of a stream, whose number is not known."""
    return None if isinstance(given, IterableDataset) or not isinstance(given, Sized) else len(given)


def warn_of_few_steps(given: Any, args: HolisticCLIPTrainingArguments) -> None:
    """Log if the training is shorter than its warm-up, or than the steps between two logs."""
    rows, size, ranks = _num_rows(given), args.per_device_train_batch_size, args.world_size
    if rows is None:
        return
    batches = rows // (size * ranks) if args.dataloader_drop_last else math.ceil(rows / (size * ranks))
    per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    if args.warmup_steps >= max(steps, 2):
        logger.warning(
            "`warmup_steps` is %g of %d steps: the learning rate never reaches its peak. Lower it, or train longer.",
            args.warmup_steps,
            steps,
        )
    is_by_steps = args.logging_strategy == IntervalStrategy.STEPS and not args.logging_first_step
    if is_by_steps and args.logging_steps > steps:
        logger.warning(
            "`logging_steps` is %g of %d steps: no loss will be shown. Lower it.", args.logging_steps, steps
        )


def require_countable(given: Any, args: HolisticCLIPTrainingArguments) -> None:
    """Raise `ValueError` for an evaluation stream on several ranks, which would bring different numbers of rows."""
    if args.world_size > 1 and any(isinstance(dataset, IterableDataset) for dataset in datasets_of(given)):
        raise ValueError(
            f"`eval_dataset` is a stream, and there are {args.world_size} processes, whose shares of it need not be "
            f"equal; expected a `datasets.Dataset`, such as the stream's first rows in `Dataset.from_list`."
        )


def require_resumable(found: Path | None, args: HolisticCLIPTrainingArguments) -> Path:
    """Raise `ValueError` where there is nothing to resume from."""
    if found is None:
        raise ValueError(
            f"{args.output_dir} holds no checkpoint that all {args.world_size} processes have saved to its end. Start "
            f"afresh, or name a checkpoint."
        )
    return found


def require_end_token(config: HolisticCLIPConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ValueError` for a tokenizer that ends texts with another token than the one at which they are read.

    Training would write the tokenizer's into the configuration, and change what the model makes of every text.
    """
    if not config.reads_end_token:
        return
    end, read = tokenizer.eos_token_id, cast(CLIPTextConfig, config.text_config).eos_token_id
    if read == LEGACY_END and end == len(tokenizer) - 1:
        return
    if end != read:
        where = "the highest id" if read == LEGACY_END else f"token {read}"
        raise ValueError(
            f"`processing_class.tokenizer` ends texts with token {end} of {len(tokenizer)}, and the model reads them "
            f"at {where}; expected the same. Take the tokenizer of the model's checkpoint, or make the model with "
            f"`text_config={{'eos_token_id': {end}}}`."
        )


def require_precision(model: nn.Module) -> None:
    """Raise `ValueError` for trained weights in half precision, to which most steps of an optimizer add nothing."""
    trained = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    coarse = sorted(str(dtype) for dtype in trained & {torch.bfloat16, torch.float16})
    if coarse:
        raise ValueError(
            f"`model` has weights of {' and '.join(coarse)}; expected torch.float32, since most steps are too small "
            f"to change them. Load it with `from_pretrained(..., dtype=torch.float32)`, and compute in half precision "
            f"with `bf16=True`."
        )


def require_freezable(config: HolisticCLIPConfig, args: HolisticCLIPTrainingArguments, *, augmented: bool) -> None:
    """Raise `ValueError` for a tower that cannot be frozen below its branches, or images that differ in each epoch."""
    kind = cast(Any, config.vision_config).branch_type
    if kind != "probe":
        raise ValueError(
            f"`freeze_tower` is set and `branch_type` is {kind!r}; expected 'probe', whose branches read what "
            "comes out of a tower that stays as it is. Take a model with probes, or leave it out."
        )
    if augmented and args.augmented_views is None:
        raise ValueError(
            "`augmentation` is given with `freeze_tower`, for which an image has the same states in each epoch; "
            "expected none, or the number of its views. Set `augmented_views`, such as 4, or leave it out."
        )
    if args.augmented_views is not None and not augmented:
        raise ValueError(
            f"`augmented_views` is {args.augmented_views} without `augmentation`; expected both, or views would be "
            "equal. Give an augmentation, or leave it out."
        )


def require_one_device(args: HolisticCLIPTrainingArguments) -> None:
    """Raise `ValueError` for one process with several GPUs."""
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs. Start one process per GPU: `accelerate launch` or "
            f"`torchrun --nproc-per-node {args.n_gpu}`."
        )


def require_slots_for_all_branches(config: HolisticCLIPConfig, slots: list[str]) -> None:
    """Raise `ValueError` for a branch that no slot would train."""
    if config.matching != "aligned" or FREE in config.branch_of_slot(slots):
        return
    idle = [name for name in config.perspectives if name not in slots]
    if idle:
        raise ValueError(
            f"No slot trains the branches {idle}; the slots are {slots}. Add slots of these names, or build the model "
            f"with `perspectives={slots}`."
        )


def is_adapted(model: nn.Module) -> bool:
    """Tell whether a model has an adapter of PEFT around it."""
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def require_mergeable(model: nn.Module, *, sharded: bool) -> None:
    """Raise `ValueError` for an adapter that cannot be merged into weights that people load without PEFT."""
    if sharded and is_adapted(model):
        raise ValueError(
            "`push_to_hub` is set for an adapter of PEFT with sharded weights; expected whole weights on every rank. "
            "Train with DDP, or leave it out and merge the saved adapter."
        )


def require_scale(args: HolisticCLIPTrainingArguments, *, sharded: bool, deepspeed: bool) -> None:
    """Raise `ValueError` for what sharded weights do not go with; say what gradient accumulation does not do."""
    if args.freeze_tower and (sharded or deepspeed):
        raise ValueError("`freeze_tower` needs the whole tower in one process. Use DDP, or leave it out.")
    if args.ema_decay is not None and sharded:
        raise ValueError("`ema_decay` needs whole weights on every rank. Leave it out with FSDP and DeepSpeed.")
    if args.gradient_cache_size is not None and deepspeed:
        raise ValueError("`gradient_cache_size` and DeepSpeed do not go together. Use DDP or FSDP.")
    if args.gradient_accumulation_steps > 1 and args.gradient_cache_size is None:
        logger.warning(
            "gradient_accumulation_steps=%d: an image is told only from those of its own micro-batch of %d. To have "
            "the negatives of a large batch at the memory of a small one, raise `per_device_train_batch_size` and set "
            "`gradient_cache_size` instead.",
            args.gradient_accumulation_steps,
            args.per_device_train_batch_size * args.world_size,
        )


def require_finite_loss(loss: Tensor, image_ids: list[str], *, step: int) -> None:
    """Raise `ValueError` on all ranks if any rank's loss is not: else the others would wait for it for ever."""
    if torch.isfinite(sum_over_ranks(loss)):
        return
    theirs = gather_objects([] if torch.isfinite(loss) else image_ids)
    raise ValueError(
        f"The loss is {loss.item()} at step {step}, on the images {', '.join(chain(*theirs))}. Lower the learning "
        f"rate or clip gradients (`max_grad_norm`); a resumed run begins at the last checkpoint."
    )
