# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""What happens around training steps: clamped temperature, the collator's epoch, a moving average of the weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from ..collator import HolisticCLIPCollator

EMA_NAME = "ema.safetensors"


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


class MovingAverage(TrainerCallback):
    """An exponential moving average of the trained weights, which training ends with.

    Early on, the average would be the random start: as in TensorFlow's `ExponentialMovingAverage`, the decay at step t
    is at most (1 + t) / (10 + t).

    Args:
        model: whose weights are averaged.
        decay: of the average per step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.average: dict[str, Tensor] = {}

    def _trained(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.model.named_parameters() if weight.requires_grad}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin with the weights, unless `load` has brought back an average."""
        if not self.average:
            self.average = {name: weight.clone() for name, weight in self._trained().items()}

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Runs after `ClampLogitScale`, which comes first in the list of callbacks."""
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        for name, weight in self._trained().items():
            self.average[name].lerp_(weight, 1 - decay)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The average is what training ends with."""
        self._overwrite(self.average)

    def save(self, checkpoint: Path) -> None:
        """Put the average beside the weights that training goes on from."""
        save_file(self.average, checkpoint / EMA_NAME)

    def load(self, checkpoint: Path) -> None:
        """The average that was saved with a checkpoint.

        Raises:
            ValueError: a checkpoint without one, or of other weights.
        """
        path = checkpoint / EMA_NAME
        if not path.is_file():
            raise ValueError(f"{checkpoint} holds no {EMA_NAME}: it was trained without `ema_decay`. Leave it out.")
        trained, average = self._trained(), load_file(path)
        if average.keys() != trained.keys():
            raise ValueError(f"{path} averages other weights than are trained now. Freeze the same as before.")
        self.average = {name: value.to(trained[name].device) for name, value in average.items()}

    @torch.no_grad()
    def _overwrite(self, values: dict[str, Tensor]) -> None:
        for name, weight in self._trained().items():
            weight.copy_(values[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with averaged weights, for as long as the context lasts."""
        kept = {name: weight.clone() for name, weight in self._trained().items()}
        self._overwrite(self.average)
        try:
            yield
        finally:
            self._overwrite(kept)
