# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Callbacks of training: temperature, epoch, moving average, logs, branches that stay alike, rows left out, streams.

Ranks log what one process with the whole batch would.

Axes: N images of this rank, H branches, M caption slots.
"""

import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments

from ..images.left_out import LeftOutLog, first_reasons, warn_of_all
from ..loss_holistic_clip import LOSS_PARTS, MultiToMultiLoss, branch_shares
from ..storage import parse_json, write_json
from .collator import HolisticCLIPCollator
from .distributed import gather_objects, rank, sum_over_ranks
from .streams import EndlessRows, Place

logger = logging.getLogger(__name__)

LEFT_OUT_NAME = "left_out.json"
EARLIER_NAME = "unreadable_images.json"  # of 0.1.0, where only images were left out
MOST_ALIKE = 0.95  # mean cosine between branches, from which they say the same


class LeftOutRows(TrainerCallback):
    """Images and captions that training and evaluation leave out: the reason of each, by its name.

    The list is written at every save and at the end, for all ranks by the first, and goes on where a run is resumed.

    Args:
        folder: Folder of the list.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEFT_OUT_NAME
        self.reasons: dict[str, str] = {}
        self.unshared: dict[str, str] = {}  # what other ranks do not know yet
        self.where = f" {self.path} lists them."
        self.log = LeftOutLog(self.where)

    def note(self, found: Mapping[str, str]) -> None:
        """Take up what this rank met; the first of them are named in a warning each."""
        new = {name: reason for name, reason in found.items() if name not in self.reasons}
        self.unshared |= new
        self.log.note(new)

    def count(self) -> int:
        """Count what is left out on any rank, each once. Collective: call it on every rank."""
        for theirs in gather_objects(self.unshared):
            self.reasons |= theirs
        self.unshared = {}
        return len(self.reasons)

    def save(self) -> None:
        """Write the list; to be called on all ranks. Where nothing is left out, nothing is written."""
        if (self.count() or self.path.is_file()) and rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, dict(sorted(self.reasons.items())), indent=1)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up what the interrupted run met, if this one resumes it."""
        if state.global_step == 0:
            return
        for path in (self.path.with_name(EARLIER_NAME), self.path):
            if path.is_file():
                self.reasons |= self._listed(path)

    def _listed(self, path: Path) -> dict[str, str]:
        """Return a list of an interrupted run; of a damaged one nothing, which is told."""
        try:
            found = parse_json(path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
        logger.warning("%s is damaged: what the interrupted run left out is no longer known. A new list begins.", path)
        return {}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.save()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the list, and say how long it is."""
        self.save()
        if rank() == 0:
            warn_of_all(len(self.reasons), self.where)


PLACE_NAME = "stream-{}.json"


class StreamPlace(TrainerCallback):
    """Place of each worker of this rank in a stream, saved with a checkpoint and told to the stream on resuming."""

    def __init__(self) -> None:
        self.places: dict[int, Place] = {}
        self.num_batches = 0
        self.num_workers = 1

    def note(self, batch: Mapping[str, Any]) -> None:
        """Take up where a batch ends, if it is of a stream. Workers take turns, a batch each."""
        if "place" in batch:
            self.places[self.num_batches % self.num_workers] = Place(*batch["place"])
            self.num_batches += 1

    def save(self, checkpoint: Path) -> None:
        """Put this rank's places beside the weights."""
        if self.places:
            checkpoint.mkdir(parents=True, exist_ok=True)
            record = {"workers": self.num_workers, "places": self.places}
            (checkpoint / PLACE_NAME.format(rank())).write_text(json.dumps(record), encoding="utf-8")

    def load(self, checkpoint: Path, args: TrainingArguments) -> None:
        """Load the places saved with a checkpoint, unless the stream is to begin anew.

        Raises:
            ValueError: a checkpoint without them, or of another number of workers.
        """
        if args.ignore_data_skip:
            return
        path, num_workers = checkpoint / PLACE_NAME.format(rank()), max(1, args.dataloader_num_workers)
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if record.get("workers") != num_workers:
            raise ValueError(
                f"{path}: got {record.get('workers', 'no')} workers that read the stream for this process, expected "
                f"{num_workers} as now. Resume with the processes and workers of the interrupted run, or "
                f"begin the stream anew with `ignore_data_skip=True`."
            )
        self.places = {int(worker): Place(*place) for worker, place in record["places"].items()}

    def on_train_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: DataLoader | None = None, **kwargs: Any
    ) -> None:
        self.num_workers = max(1, args.dataloader_num_workers)
        self.num_batches = 0 if args.ignore_data_skip else state.global_step * args.gradient_accumulation_steps
        if self.num_batches == 0:
            self.places = {}
        if train_dataloader is not None and isinstance(stream := train_dataloader.dataset, EndlessRows):
            stream.skipped_batches, stream.places = self.num_batches, dict(self.places)


# A slot of which so many images have no caption has one on fewer than 0.3 % of images, with 95 % confidence: the "rule
# of three" (Hanley and Lippman-Hand, 1983, https://doi.org/10.1001/jama.1983.03330370053031).
ENOUGH_IMAGES = 1000


class LossLog:
    """Callback that collects the parts of the loss between two logs.

    Args:
        branches: H names, or none where captions do not choose their branch.
        slots: M names.
    """

    def __init__(self, branches: Sequence[str], slots: Sequence[str]) -> None:
        self.branches = list(branches)
        self.slots = list(slots)
        self.steps: list[Tensor] = []
        self.captions = torch.zeros(len(self.slots), dtype=torch.long)
        self.images = 0
        self.num_empty = 0  # batches since the last log, of all ranks alike
        self.of_all = [0, 0]  # batches of the whole run, and those of them that were empty

    def note(self, loss: MultiToMultiLoss, mask: Tensor) -> None:
        """Take up a step of this rank; `mask` (N, M) is the batch's `caption_mask`. Nothing waits for the device."""
        terms = [getattr(loss, name).detach().float() for name in LOSS_PARTS]
        parts = torch.stack([*terms, mask.sum().float()])
        if self.branches:
            parts = torch.cat([parts, branch_shares(loss.assignment, mask, len(self.branches)) * mask.sum()])
        self.steps.append(parts)
        if self.slots:
            self.captions = self.captions.to(mask.device) + mask.sum(dim=0)
            self.images += len(mask)

    def note_empty(self) -> None:
        """Take up a batch of which nothing can be used, whose loss is zero for want of another number."""
        self.num_empty += 1

    def without_empty(self, mean: float) -> float:
        """Return the mean loss of the batches since the last call of `take`, given that with empty ones as zeros.

        It is NaN if all of them were empty.
        """
        return _without_zeros(mean, len(self.steps) + self.num_empty, self.num_empty)

    def without_empty_of_all(self, mean: float) -> float:
        """Return the same for the whole run."""
        num_batches, num_empty = self.of_all
        return _without_zeros(mean, num_batches + len(self.steps) + self.num_empty, num_empty + self.num_empty)

    def take(self) -> dict[str, float]:
        """Return the means of all ranks since the last call; nothing where nothing was noted. To be called on all
        ranks.
        """
        num_batches, num_empty = self.of_all
        self.of_all = [num_batches + len(self.steps) + self.num_empty, num_empty + self.num_empty]
        self.num_empty = 0
        if not self.steps:
            return {}
        steps = self.steps[0].new_tensor([len(self.steps)])
        summed = sum_over_ranks(torch.cat([steps, torch.stack(self.steps).sum(dim=0)]))
        self.steps.clear()
        num_steps, *terms = summed[: 1 + len(LOSS_PARTS)].tolist()
        captions, *met = summed[1 + len(LOSS_PARTS) :].tolist()
        shares = {name: count / max(1, captions) for name, count in zip(self.branches, met, strict=True)}
        parts = {name: term / num_steps for name, term in zip(LOSS_PARTS, terms, strict=True)}
        return parts | {f"share_of_{name}": share for name, share in shares.items()}

    def warn_of_empty_slots(self) -> None:
        """Warn once, if a slot had no caption at all: a stream cannot be asked beforehand what it holds."""
        if self.images < ENOUGH_IMAGES or not self.slots:
            return
        empty = [name for name, count in zip(self.slots, self.captions.tolist(), strict=True) if count == 0]
        self.slots = []
        if empty:
            logger.warning(
                "None of the first %d images of this process has a caption for the slots %s: they train nothing. "
                "Compare `slots` with the perspectives of the corpus.",
                self.images,
                empty,
            )


def _without_zeros(mean: float, count: int, num_zeros: int) -> float:
    if not num_zeros:
        return mean
    return mean * count / (count - num_zeros) if count > num_zeros else math.nan


MOST_EMPTY = 3  # batches at the beginning, of which nothing can be used


class UsableBatches:
    """Check of whether batches hold anything to train on. The first of a run have to, later ones are left out.

    Args:
        slots: M names.
        max_steps: Steps of the run, or -1 where epochs say.
    """

    def __init__(self, slots: Sequence[str], max_steps: int) -> None:
        self.slots = list(slots)
        self.num_empty = 0
        self.most = min(MOST_EMPTY, max_steps) if max_steps > 0 else MOST_EMPTY
        self.is_found = False

    def take(self, mask: Tensor, left_out: Mapping[str, str]) -> bool:
        """Tell whether a batch of all ranks, of this `caption_mask`, holds a readable image with a caption.

        Raises:
            ValueError: on all ranks, if no batch so far had a readable image with a caption.
        """
        is_usable = bool(mask.any())
        self.is_found = self.is_found or is_usable
        self.num_empty += not is_usable
        if not self.is_found and self.num_empty >= self.most:
            reasons = first_reasons(left_out)
            raise ValueError(
                f"No image of the first {self.num_empty} batches is readable and has a caption for one of the slots "
                f"{self.slots}. {f'Left out are {reasons}. ' if reasons else ''}Check where the "
                "images are stored, and set `slots` to perspectives of the corpus."
            )
        return is_usable


EMA_NAME = "ema.safetensors"


class ClampLogitScale(TrainerCallback):
    """Callback that keeps the inverse temperature between 1 and `logit_scale_max`, as CLIP does, after every optimizer
    step.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        with torch.no_grad():
            model.logit_scale.clamp_(0.0, math.log(args.logit_scale_max))


class TellEpoch(TrainerCallback):
    """Callback that tells the collator which epoch it is: what it draws depends on it."""

    def __init__(self, collator: HolisticCLIPCollator) -> None:
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.collator.epoch = math.floor(state.epoch)


class MovingAverage(TrainerCallback):
    """An exponential moving average of the trained weights, which training ends with, and of batch norms' statistics.

    Early on, the average would be the random start: as in TensorFlow's `ExponentialMovingAverage`, the decay at step t
    is at most (1 + t) / (10 + t). It is kept in float32 or better, since a step moves it by a thousandth of the
    difference, which is nothing in half precision.

    Args:
        model: whose weights are averaged.
        decay: Decay of the average per step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.average: dict[str, Tensor] = {}

    def _trained(self) -> dict[str, Tensor]:
        # Statistics of a batch norm belong to the weights that they were measured with.
        frozen = {name for name, weight in self.model.named_parameters() if not weight.requires_grad}
        state = self.model.state_dict()
        return {name: each for name, each in state.items() if name not in frozen and each.is_floating_point()}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin with the weights, unless `load` has brought back an average."""
        if not self.average:
            self.average = {name: _exact(weight).clone() for name, weight in self._trained().items()}

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Run after `ClampLogitScale`, which comes first in the list of callbacks."""
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        for name, weight in self._trained().items():
            self.average[name].lerp_(_exact(weight), 1 - decay)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End training with the average."""
        self._overwrite(self.average)

    def save(self, checkpoint: Path) -> None:
        """Put the average beside the weights that training goes on from."""
        save_file(self.average, checkpoint / EMA_NAME)

    def load(self, checkpoint: Path) -> None:
        """Load the average that was saved with a checkpoint.

        Raises:
            ValueError: a checkpoint without one, or of other weights.
        """
        path = checkpoint / EMA_NAME
        if not path.is_file():
            raise ValueError(f"{checkpoint} holds no {EMA_NAME}: it was trained without `ema_decay`. Leave it out.")
        trained, average = self._trained(), load_file(path)
        if average.keys() != trained.keys():
            raise ValueError(f"{path} averages other weights than are trained now. Freeze the same as before.")
        self.average = {name: _exact(value).to(trained[name].device) for name, value in average.items()}

    @torch.no_grad()
    def _overwrite(self, values: dict[str, Tensor]) -> None:
        for name, weight in self._trained().items():
            weight.copy_(values[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Provide the model with averaged weights, for as long as the context lasts."""
        kept = {name: weight.clone() for name, weight in self._trained().items()}
        self._overwrite(self.average)
        try:
            yield
        finally:
            self._overwrite(kept)


def _exact(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


class BranchSimilarity(TrainerCallback):
    """Mean similarity between the branches of evaluated images, with a warning if they stay copies of each other.

    A warm start begins with copies. If they do not part, naming a perspective changes nothing.
    """

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.is_warned = False

    def note(self, branch_embeds: Tensor) -> None:
        """Take up images of all ranks, (N, H, D) of unit length."""
        num_branches = branch_embeds.shape[1]
        if num_branches > 1:
            # The squared length of the sum is that of all pairs, of which H are a branch with itself.
            pairs = branch_embeds.float().sum(dim=1).square().sum(dim=1) - num_branches
            self.rows.append(pairs / (num_branches * (num_branches - 1)))

    def take(self) -> dict[str, float]:
        """Return the mean cosine of two different branches since the last call; nothing where nothing was noted."""
        if not self.rows:
            return {}
        images = torch.cat(self.rows)
        self.rows.clear()
        return {"branch_similarity": images.mean().item()} if len(images) else {}

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Warn once, after half of the training, if the branches are still copies; at first they have to be."""
        similarity = (metrics or {}).get("eval_branch_similarity", 0.0)
        if self.is_warned or similarity <= MOST_ALIKE or 2 * state.global_step < state.max_steps:
            return
        self.is_warned = True
        logger.warning(
            "The branches are alike after step %d (mean cosine %.3f), so that naming one changes little. Train longer "
            "or raise `learning_rate_multipliers` of `*.branch_*`, such as to 10 for branched MLPs or 30 for class "
            "tokens.",
            state.global_step,
            similarity,
        )


SHOWN = {
    "loss": "loss {:.3f}",
    "logit_scale": "scale {:.1f}",
    "learning_rate": "lr {:.1e}",
    "eval_loss": "held-out loss {:.3f}",
    "eval_text_to_image_recall@5": "text-to-image recall@5 {:.1%}",
    "eval_image_to_text_recall@5": "image-to-text recall@5 {:.1%}",
    "eval_branch_similarity": "branches alike {:.2f}",
}


def one_line(logs: Mapping[str, float]) -> str:
    """Return what people look at in a log, or nothing; the whole logs are in `trainer_state.json`.

    >>> one_line({"loss": 2.5, "grad_norm": 1.0, "learning_rate": 1e-4, "epoch": 1.0})
    'loss 2.500, lr 1.0e-04'
    """
    return ", ".join(form.format(logs[name]) for name, form in SHOWN.items() if name in logs)


class OneLineProgress(ProgressCallback):
    """`ProgressCallback` with a line for each log, for terminals."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and (line := one_line(logs or {})):
            tqdm.write(f"step {state.global_step:5}  {line}", file=sys.stderr)


class OneLinePrinter(TrainerCallback):
    """The same lines with the time that is left, for output that is not a terminal."""

    def __init__(self) -> None:
        self.started, self.first_step = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started, self.first_step = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not (line := one_line(logs or {})):
            return
        done, left = state.global_step - self.first_step, state.max_steps - state.global_step
        told = ""
        if done > 0 and left > 0:
            told = f", {tqdm.format_interval((time.monotonic() - self.started) * left / done)} left"
        of_all = f" of {state.max_steps}" if state.max_steps else ""  # evaluation by itself has no steps
        tqdm.write(f"step {state.global_step:5}{of_all}  {line}{told}", file=sys.stderr)


def with_one_line(callbacks: Sequence[TrainerCallback], *, has_bar: bool) -> list[TrainerCallback]:
    """Return the callbacks with one line for each log in place of transformers' own, if those are the default.

    Args:
        callbacks: Callbacks of a trainer.
        has_bar: Show a bar of progress.
    """
    ours = OneLineProgress() if has_bar else OneLinePrinter()
    return [ours if type(each) in (PrinterCallback, ProgressCallback) else each for each in callbacks]
