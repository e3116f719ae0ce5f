# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Parameters that are trained, decayed and sharded, and their share of the learning rate."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Branch tokens, probes and positions are points, not maps: like biases, they are not decayed.
UNDECAYED_NAMES = ("class_embedding", "position_embedding", "probe")


def decayed_names(model: nn.Module) -> list[str]:
    """Return the names of matrices and convolutions; biases, norms, the logit scale and bias, class tokens,
    probes and positions do not decay.
    """
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and not any(part in name for part in UNDECAYED_NAMES)
    ]


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Take the parameters that fit a pattern out of training.

    Raises:
        ValueError: a pattern that fits nothing, or patterns that leave nothing to train.
    """
    _require_matches("frozen", patterns, [name for name, _ in model.named_parameters()])
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"`frozen` {list(patterns)} leaves no parameter to train. Freeze less.")


def freeze_tower(model: nn.Module) -> None:
    """Take everything below the head of the vision tower out of training."""
    tower: Any = model.vision_model
    for name in tower.below_states:
        getattr(tower, name).requires_grad_(False)


def still_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules that have to stay in evaluation mode while the model trains, so that what is frozen changes
    nothing and answers alike in each step: towers that are frozen, those of images below their head, and frozen batch
    norms, which would go on averaging over batches.
    """
    vision: Any = model.vision_model
    towers = [[getattr(vision, name) for name in vision.below_states], [model.text_model]]
    still = [part for tower in towers if all(map(_is_frozen, tower)) for part in tower]
    return still + [each for each in model.modules() if isinstance(each, _BatchNorm) and _is_frozen(each)]


def _is_frozen(module: nn.Module) -> bool:
    weights = list(module.parameters())
    return bool(weights) and not any(weight.requires_grad for weight in weights)


def scale_learning_rates(optimizer: torch.optim.Optimizer, model: nn.Module, multipliers: Mapping[str, float]) -> None:
    """Split the optimizer's groups, before its first step, by the factor on the learning rate.

    A parameter takes the factor of the first pattern that fits its name; others keep the learning rate.

    Raises:
        ValueError: a pattern that fits nothing.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    _require_matches("learning_rate_multipliers", multipliers, names.values())
    split = []
    for group in optimizer.param_groups:
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            fitting = (factor for pattern, factor in multipliers.items() if fnmatchcase(names[id(parameter)], pattern))
            by_factor.setdefault(next(fitting, 1.0), []).append(parameter)
        split += [{**group, "params": some, "lr": group["lr"] * factor} for factor, some in by_factor.items()]
    optimizer.param_groups[:] = split


def keep_scalars_whole(model: nn.Module, accelerator: Accelerator) -> None:
    """Leave parameters without an axis, the temperature and the bias, out of FSDP2, which cannot shard them.

    Every rank keeps them whole; their gradients are averaged over ranks, as FSDP2 does with what it shards.
    """
    scalars = nn.ParameterList([parameter for parameter in model.parameters() if parameter.ndim == 0])
    accelerator.state.fsdp_plugin.ignored_modules = [scalars]

    def average_gradient(scalar: Tensor) -> None:
        if scalar.grad is not None and accelerator.sync_gradients:
            dist.all_reduce(scalar.grad)
            scalar.grad /= dist.get_world_size()

    for scalar in scalars:
        scalar.register_post_accumulate_grad_hook(average_gradient)


def _require_matches(option: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"`{option}`: no parameter fits {pattern!r}. They are named as {names[0]!r} or {names[-1]!r}; "
                f"`model.named_parameters()` lists them, and `text_model.*` means all of the text tower."
            )
