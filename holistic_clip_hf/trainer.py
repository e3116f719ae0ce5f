# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Training: `transformers.Trainer` with the multi-to-multi loss, global negatives and retrieval recall.

Axes: N images per rank, H branches, M caption slots, D projection width.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from .augmentation import Augmentation
from .collator import HolisticCLIPCollator
from .corpus.schema import count_perspectives
from .distributed import gather_rows, rank_offset
from .evaluation.metrics import distinct_captions, retrieval_recalls
from .loss_holistic_clip import FREE, CaptionBatch, multi_to_multi_loss
from .modeling_holistic_clip import HolisticCLIPModel, HolisticCLIPOutput
from .processing_holistic_clip import HolisticCLIPProcessor

# Branch tokens and positions are points, not maps: like biases, they are not decayed.
UNDECAYED_NAMES = ("class_embedding", "position_embedding")


@dataclass
class HolisticCLIPTrainingArguments(TrainingArguments):
    """`TrainingArguments`; only what differs stands here. Defaults are those of the paper's released `train.sh`."""

    slots: list[str] | None = field(
        default=None,
        metadata={"help": "Perspectives to train on. Default: the model's own. H=1 with several is one-to-many."},
    )
    logit_scale_max: float = field(
        default=100.0, metadata={"help": "The inverse temperature is clamped to 1 ... this after every step."}
    )
    per_device_train_batch_size: int = field(default=256, metadata={"help": "Images per device."})
    num_train_epochs: float = field(default=100, metadata={"help": "Passes over the images."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.2, metadata={"help": "Not on biases, norms, tokens, positions, scale."})
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW's second decay rate."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "AdamW's epsilon."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 is none."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=2000, metadata={"help": "Steps of linear warm-up, or their share if below 1."})
    # Global negatives need batches of equal size; evaluation still sees every row.
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the last partial batch of training."})
    # The collator reads raw columns.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Keep corpus columns for the collator."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataloader_persistent_workers:
            raise ValueError(
                "`dataloader_persistent_workers=True` would repeat the random draws of the first epoch for ever: "
                "workers that stay do not learn which epoch it is. Leave it off."
            )
        if self.logit_scale_max < 1:
            raise ValueError(f"`logit_scale_max` is {self.logit_scale_max}. Valid: 1 or more; CLIP uses 100.")


class ClampLogitScale(TrainerCallback):
    """Keeps the inverse temperature between 1 and `logit_scale_max`, as CLIP does, after every optimizer step."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        with torch.no_grad():
            model.logit_scale.clamp_(0.0, math.log(args.logit_scale_max))


class TellEpoch(TrainerCallback):
    """Tells the collator which epoch it is: what it draws depends on it."""

    def __init__(self, collator: HolisticCLIPCollator) -> None:
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.collator.epoch = math.floor(state.epoch)


class HolisticCLIPTrainer(Trainer):
    """Trains a `HolisticCLIPModel` on a corpus.

    Negatives are global: P processes give the loss and the gradients of one process that has the whole batch.
    Evaluation reports, besides `eval_loss`, text-to-image and image-to-text recall over the whole evaluation set,
    `eval_text_to_image_recall@5` for all slots together and `eval_<slot>_text_to_image_recall@5` for each.

    Args:
        processing_class: the model's `HolisticCLIPProcessor`; it is saved with every checkpoint.
        augmentation: random changes to training images.

    Raises:
        ValueError: a branch that no slot would train, a slot without captions, or one process with several GPUs.
    """

    # The loss is a mean over the batch; accumulated micro-batches are averaged by the Trainer.
    loss_is_scaled_for_ga = False
    data_collator: HolisticCLIPCollator

    def __init__(
        self,
        model: HolisticCLIPModel,
        args: HolisticCLIPTrainingArguments,
        *,
        processing_class: HolisticCLIPProcessor,
        augmentation: Augmentation | None = None,
        **kwargs: Any,
    ) -> None:
        if args.n_gpu > 1:
            raise ValueError(
                f"One process sees {args.n_gpu} GPUs. Start one process per GPU: `accelerate launch` or "
                f"`torchrun --nproc-per-node {args.n_gpu}`."
            )
        slots = args.slots or list(model.config.perspectives)
        for name in ("train_dataset", "eval_dataset"):
            _require_captions(name, kwargs.get(name), slots)
        self.branch_of_slot = model.config.branch_of_slot(slots)
        if FREE not in self.branch_of_slot and model.config.matching == "aligned":
            idle = [name for name in model.config.perspectives if name not in slots]
            if idle:
                raise ValueError(
                    f"No slot trains the branches {idle}; the slots are {slots}. Add slots of these names, or build "
                    f"the model with `perspectives={slots}`."
                )
        self.loss_parts: list[tuple[Tensor, Tensor]] = []
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            data_collator=HolisticCLIPCollator(processing_class, slots, augmentation=augmentation, seed=args.seed),
            compute_metrics=kwargs.pop("compute_metrics", self.recall_by_slot),
            **kwargs,
        )
        self.slots = slots
        self.label_names: list[str] = []
        self.add_callback(ClampLogitScale())
        self.add_callback(TellEpoch(self.data_collator))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, HolisticCLIPOutput]:
        """The multi-to-multi loss of this rank's rows against the rows of all ranks."""
        output = model(**inputs)
        config, mask, ids = self.model.config, inputs["caption_mask"], inputs["caption_ids"]
        gathered = CaptionBatch(*map(gather_rows, (output.branch_embeds, output.text_embeds, mask, ids)))
        loss = multi_to_multi_loss(
            output.branch_embeds,
            output.text_embeds,
            output.logit_scale,
            matching=config.matching,
            branch_of_slot=self.branch_of_slot,
            caption_mask=mask,
            caption_ids=ids,
            duplicate_captions=config.duplicate_captions,
            diversity_weight=config.diversity_weight,
            diversity_threshold=config.diversity_threshold,
            gathered=gathered,
            offset=rank_offset(len(mask)),
        )
        if model.training and self.args.logging_strategy != "no":
            self.loss_parts.append((loss.contrastive.detach(), loss.diversity.detach()))
        return (loss.total, output) if return_outputs else loss.total

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Any, Any]:
        """Embeddings as predictions, caption ids and mask as labels: recall needs them of the whole set at once."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, output = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        return loss, (output.image_embeds, output.text_embeds), (inputs["caption_ids"], inputs["caption_mask"])

    def recall_by_slot(self, prediction: EvalPrediction) -> dict[str, float]:
        """Recall of the fused vector over the evaluation set: each slot by itself, and their mean."""
        image_embeds, text_embeds = (torch.as_tensor(part) for part in prediction.predictions)
        ids, mask = (torch.as_tensor(part) for part in prediction.label_ids)
        metrics: dict[str, float] = {}
        for index, slot in enumerate(self.slots):
            if not mask[:, index].any():
                raise ValueError(f"No row of the evaluation set has a caption for the slot {slot!r}.")
            rows, pairs = distinct_captions(ids[:, index : index + 1], mask[:, index : index + 1])
            recalls = retrieval_recalls(image_embeds, text_embeds[rows[:, 0], index], pairs)
            metrics.update({f"{slot}_{name}": value for name, value in recalls.items()})
        for name in recalls:
            metrics[name] = sum(metrics[f"{slot}_{name}"] for slot in self.slots) / len(self.slots)
        return metrics

    @contextmanager
    def _everything_as_it_is(self) -> Iterator[None]:
        """Every row, also where training drops the last partial batch, and nothing at random."""
        drop_last, collator = self.args.dataloader_drop_last, self.data_collator
        self.args.dataloader_drop_last, self.data_collator = False, collator.for_evaluation()
        try:
            yield
        finally:
            self.args.dataloader_drop_last, self.data_collator = drop_last, collator

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """Every row, unaugmented."""
        with self._everything_as_it_is():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """Every row, unaugmented."""
        with self._everything_as_it_is():
            return super().get_test_dataloader(test_dataset)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices and convolutions decay; biases, norms, the logit scale, class tokens and positions do not."""
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim > 1 and not any(part in name for part in UNDECAYED_NAMES)
        ]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the parts of this rank's loss, averaged since the last log, and the temperature."""
        if self.loss_parts and "loss" in logs:
            contrastive, diversity = zip(*self.loss_parts, strict=True)
            logs["contrastive"] = torch.stack(contrastive).mean().item()
            logs["diversity"] = torch.stack(diversity).mean().item()
            logs["logit_scale"] = self.model.logit_scale.exp().item()
            self.loss_parts.clear()
        super().log(logs, start_time)


def _require_captions(name: str, dataset: Any, slots: list[str]) -> None:
    """Refuse a dataset that has no caption at all for one of the slots, before hours of training."""
    for each in dataset.values() if isinstance(dataset, dict) else [dataset]:
        if not isinstance(each, Dataset):
            continue  # a stream cannot be counted beforehand
        found = count_perspectives(each)
        absent = [slot for slot in slots if slot not in found]
        if absent:
            raise ValueError(
                f"`{name}` has no caption of {absent}. It has: {', '.join(sorted(found))}. Set `slots` to "
                f"perspectives of the corpus."
            )
