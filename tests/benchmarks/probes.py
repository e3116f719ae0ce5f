"""Probes against SigLIP's own head, `transformers.SiglipVisionModel` side by side: ViT-B/16, 224 px, 2 images.

    python tests/benchmarks/probes.py --threads 1      two minutes on an idle core; writes results/probes.json

Times are CPU times of the process, so that a busy machine counts less. Every ratio is to SiglipVisionModel in the same
round. Target: 6 probes at most 1.01.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from _measure import arguments, interleaved, peak_bytes, ratio, write_record
from torch import Tensor
from transformers import PreTrainedModel, SiglipVisionConfig, SiglipVisionModel

from holistic_clip_hf import HolisticBackboneVisionConfig, HolisticBackboneVisionModel

IMAGES, PEER, TARGET = 2, "SiglipVisionModel", 1.01
VARIANTS = {PEER: {}, "6 probes": {"num_branches": 6}}
VARIANTS["6 probes, branched MLP"] = {"num_branches": 6, "branched_head_mlp": True}


def build(variant: str) -> PreTrainedModel:
    """The vision tower of SigLIP's ViT-B/16, with random weights; patches of 16 pixels are its default."""
    torch.manual_seed(0)
    if variant == PEER:
        return SiglipVisionModel(SiglipVisionConfig()).eval()
    config = HolisticBackboneVisionConfig(backbone_config=SiglipVisionConfig(), **VARIANTS[variant])
    return HolisticBackboneVisionModel(config).eval()


@torch.no_grad()
def encode(model: PreTrainedModel, pixel_values: Tensor) -> None:
    model(pixel_values)


def cases(only: str | None = None) -> dict[str, Callable[[], object]]:
    pixels = torch.randn(IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return {name: partial(encode, build(name), pixels) for name in VARIANTS if only in (None, name)}


def main() -> None:
    options = arguments(__doc__, rounds=31)
    if options.memory:
        sys.stdout.write(f"{peak_bytes(cases(only=options.memory)[options.memory])}\n")
        return
    seconds = interleaved(cases(), options.rounds, clock=time.process_time)
    rows = {}
    for name, found in seconds.items():
        quotients = sorted(ours / theirs for ours, theirs in zip(found, seconds[PEER], strict=True))
        rows[name] = {
            "seconds": statistics.median(found),
            "ratio": ratio(seconds, name, PEER),
            "quartiles": statistics.quantiles(quotients, n=4)[::2],
        }
        line = "{seconds:8.3f} s   ratio {ratio:6.4f}   quartiles {quartiles[0]:6.4f} to {quartiles[1]:6.4f}"
        sys.stdout.write(f"{name:24} {line.format(**rows[name])}\n")
    write_record("probes", {"rounds": options.rounds, "images": IMAGES, "target": TARGET, "cases": rows})


if __name__ == "__main__":
    main()
