"""The streamed loss against the same loss with whole logits: time and peak memory, forward and backward, M = H = 6.

    python tests/benchmarks/loss.py             ten minutes on two cores; writes results/loss.json

The peer is the usual way to write it: per slot one matrix of logits, and `cross_entropy` of it and of its transpose.
Memory is what the process takes beyond its inputs, the gradients of these included, in a fresh process per case.
Targets: at most 1.5 times the peer's time, and less than 0.9 GB at 16,384 images.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from _measure import arguments, interleaved, peak_bytes, peak_in_fresh_process, ratio, write_record
from torch import Tensor
from torch.nn import functional as F

from holistic_clip_hf import LossOptions, multi_to_multi_loss
from holistic_clip_hf.loss_holistic_clip import diversity_penalty

BRANCHES, WIDTH, THRESHOLD = 6, 512, 0.7
PEER, OURS = "whole", "streamed"
COMPARED, LARGEST = (2048, 4096), 16384
CHUNK_SIZES = (128, 512, 2048, None)
TARGETS = {"ratio": 1.5, "gigabytes": 0.9}


def inputs(images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Branch embeddings, text embeddings and the inverse temperature, all of which ask for gradients."""
    generator = torch.Generator().manual_seed(0)
    branches, texts = (F.normalize(torch.randn(images, BRANCHES, WIDTH, generator=generator), dim=-1) for _ in "ab")
    return branches.requires_grad_(), texts.requires_grad_(), torch.tensor(20.0, requires_grad=True)


def whole_logits(branches: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    own, rows = torch.arange(len(branches)), []
    for slot in range(BRANCHES):
        logits = scale * texts[:, slot] @ branches[:, slot].T
        rows.append((F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2)
    return torch.stack(rows).mean() + diversity_penalty(branches, THRESHOLD)


def streamed(*embeds: Tensor, chunk_size: int | None = None) -> Tensor:
    return multi_to_multi_loss(*embeds, LossOptions(diversity_threshold=THRESHOLD, chunk_size=chunk_size)).total


FORMS: dict[str, Callable[..., Tensor]] = {PEER: whole_logits, OURS: streamed}


def step(form: Callable[..., Tensor], embeds: tuple[Tensor, ...]) -> float:
    """Forward and backward; the loss."""
    for one in embeds:
        one.grad = None
    loss = form(*embeds)
    loss.backward()
    return loss.item()


def measure_memory(case: str) -> int:
    form, images = case.split()
    return peak_bytes(partial(step, FORMS[form], inputs(int(images))))


def measure_times(images: int, rounds: int) -> dict[str, float]:
    """Median seconds of each form, and of ours in blocks of other sizes."""
    embeds = inputs(images)
    cases = {PEER: whole_logits} | {
        f"{OURS}, chunk_size={size}": partial(streamed, chunk_size=size) for size in CHUNK_SIZES
    }
    values = {name: step(form, embeds) for name, form in cases.items()}
    if max(values.values()) - min(values.values()) > 1e-4:
        raise RuntimeError(f"The forms disagree: {values}.")
    seconds = interleaved({name: partial(step, form, embeds) for name, form in cases.items()}, rounds)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return medians | {"ratio": ratio(seconds, f"{OURS}, chunk_size=None", PEER)}


def main() -> None:
    chosen = arguments(__doc__, rounds=3)
    if chosen.memory:
        print(measure_memory(chosen.memory))
        return
    cases = [f"{form} {images}" for images in COMPARED for form in FORMS] + [f"{OURS} {LARGEST}"]
    gigabytes = {case: peak_in_fresh_process(__file__, case) / 1e9 for case in cases}
    for case, amount in gigabytes.items():
        print(f"{case:16} images {amount:6.2f} GB")
    times = {images: measure_times(images, chosen.rounds) for images in COMPARED}
    start = time.perf_counter()
    step(streamed, inputs(LARGEST))
    times[LARGEST] = {f"{OURS}, chunk_size=None": time.perf_counter() - start}
    for images, found in times.items():
        for name, number in found.items():
            print(f"{images:6} images  {name:28} {number:8.2f}{'' if name == 'ratio' else ' s'}")
    met = {
        "ratio": all(times[images]["ratio"] <= TARGETS["ratio"] for images in COMPARED),
        "gigabytes": gigabytes[cases[-1]] < TARGETS["gigabytes"],
    }
    print(f"targets {TARGETS}, met: {met}")
    sizes = {"branches": BRANCHES, "slots": BRANCHES, "width": WIDTH, "rounds": chosen.rounds}
    write_record("loss", {**sizes, "gigabytes": gigabytes, "seconds": times, "targets": TARGETS, "met": met})


if __name__ == "__main__":
    main()
