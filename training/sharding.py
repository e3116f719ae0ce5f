"""What FSDP2 asks for beyond its configuration file."""

import torch.distributed as dist
from torch import Tensor, nn
from transformers import Trainer


def keep_scalars_whole(trainer: Trainer) -> None:
    """Leave the temperature out of FSDP2, which refuses parameters without an axis to shard.

    Every rank keeps it whole; its gradient is averaged over ranks, as FSDP2 does with what it shards. Without FSDP
    nothing happens.
    """
    if not trainer.is_fsdp_enabled:
        return
    scalars = nn.ParameterList([parameter for parameter in trainer.model.parameters() if parameter.ndim == 0])
    trainer.accelerator.state.fsdp_plugin.ignored_modules = [scalars]

    def average_gradient(scalar: Tensor) -> None:
        if scalar.grad is not None and trainer.accelerator.sync_gradients:
            dist.all_reduce(scalar.grad)
            scalar.grad /= dist.get_world_size()

    for scalar in scalars:
        scalar.register_post_accumulate_grad_hook(average_gradient)
