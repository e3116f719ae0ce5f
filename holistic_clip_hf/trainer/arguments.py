# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""What a training run is told: `TrainingArguments`, and what contrastive training with several captions adds."""

from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy


@dataclass
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
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 is none."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=2000, metadata={"help": "Steps of linear warm-up, or their share if below 1."})
    # Global negatives need batches of equal size; evaluation still sees every row.
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the last partial batch of training."})
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
        if self.logit_scale_max < 1:
            raise ValueError(f"`logit_scale_max` is {self.logit_scale_max}. Valid: 1 or more; CLIP uses 100.")
        for name in ("captions_per_image", "sentences_per_caption", "gradient_cache_size", "loss_chunk_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}. Valid: 1 or more, or leave it out.")
        if self.per_device_train_batch_size * self.world_size < 2:
            raise ValueError(
                "`per_device_train_batch_size` is 1, in one process: an image alone has no other to be told from. "
                "Valid: 2 or more; `gradient_cache_size` makes large batches fit."
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"`ema_decay` is {self.ema_decay}. Valid: between 0 and 1, such as 0.999.")
        if self.push_to_hub and self.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"`hub_strategy={self.hub_strategy.value!r}` would put the optimizer's state on the Hub, which is a "
                "pickle. Leave it out: the result is pushed, once, when training ends."
            )
        negative = {pattern: factor for pattern, factor in self.multipliers.items() if factor < 0}
        if negative:
            raise ValueError(f"`learning_rate_multipliers` {negative} are negative. Valid: 0 or more.")

    @property
    def multipliers(self) -> dict[str, float]:
        """`learning_rate_multipliers` as a dictionary, also where it came as JSON."""
        assert isinstance(self.learning_rate_multipliers, dict)  # the parent class has read the JSON
        return self.learning_rate_multipliers
