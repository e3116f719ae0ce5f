"""Peak memory of a step with gradient caching, for 32 and 512 images, encoded 32 at a time.

    python tests/benchmarks/gradient_cache.py    a minute on two cores; writes results/gradient_cache.json

Memory is what the process takes beyond the batch, the weights and their gradients, in a fresh process per case, less
the embeddings and their gradients, which grow with the batch by nature. Target: 512 images take at most 1.2 times as
much as 32. Without caching, 512 images are encoded at once, for comparison.
"""

import sys
from typing import Any

import torch
from _measure import MEBIBYTE, arguments, peak_bytes, peak_in_fresh_process, write_record
from torch import Tensor

from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel, multi_to_multi_loss
from holistic_clip_hf.trainer.gradient_cache import Embeddings, cached_backward, split_batch

PIECE, SMALL, LARGE = 32, 32, 512
BRANCHES, WIDTH, TOKENS, PIXELS = 6, 256, 32, 96
CASES = {f"cached {SMALL}": (SMALL, PIECE), f"cached {LARGE}": (LARGE, PIECE), f"whole {LARGE}": (LARGE, LARGE)}
TARGET = 1.2


def build() -> HolisticCLIPModel:
    torch.manual_seed(0)
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 6, "num_attention_heads": 4}
    vision = {**tower, "image_size": PIXELS, "patch_size": 16, "num_branches": BRANCHES}
    text = {**tower, "vocab_size": 1000, "eos_token_id": 999, "max_position_embeddings": TOKENS}
    return HolisticCLIPModel(HolisticCLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)).train()


def make_batch(images: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 999, (images, BRANCHES, TOKENS), generator=generator)
    ids[..., -1] = 999
    return {"pixel_values": torch.randn(images, 3, PIXELS, PIXELS, generator=generator), "input_ids": ids}


def step(model: HolisticCLIPModel, batch: dict[str, Any], size: int) -> None:
    def embed(piece: dict[str, Any]) -> Embeddings:
        output = model(**piece)
        return [output.branch_embeds, output.text_embeds], [output.logit_scale]

    def backward(rows: list[Tensor], scalars: list[Tensor]) -> Tensor:
        loss = multi_to_multi_loss(*rows, *scalars).total
        loss.backward()
        return loss.detach()

    cached_backward(list(split_batch(batch, size)), embed, backward, device=torch.device("cpu"))


def measure(case: str) -> int:
    """Bytes beyond the batch, weights, gradients, and embeddings with their gradients."""
    images, size = CASES[case]
    model, batch = build(), make_batch(images)
    step(model, make_batch(2), 2)  # makes the gradients of all weights
    embeddings = images * 2 * BRANCHES * WIDTH * 4
    return peak_bytes(lambda: step(model, batch, size)) - 2 * embeddings


def main() -> None:
    options = arguments(__doc__, rounds=1)
    if options.memory:
        sys.stdout.write(f"{measure(options.memory)}\n")
        return
    found = {case: peak_in_fresh_process(__file__, case) / MEBIBYTE for case in CASES}
    growth = found[f"cached {LARGE}"] / found[f"cached {SMALL}"]
    for case, amount in found.items():
        sys.stdout.write(f"{case:12} {amount:7.0f} MiB\n")
    sys.stdout.write(f"512 images take {growth:.2f} times what 32 take; target {TARGET}\n")
    write_record("gradient_cache", {"mebibytes": found, "growth": growth, "target": TARGET})


if __name__ == "__main__":
    main()
