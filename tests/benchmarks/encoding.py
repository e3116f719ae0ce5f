"""Encoding images by batches of 1, 8 and 64, against `CLIPModel` and open_clip in the same rounds: ViT-B/16, 224 px.

    python tests/benchmarks/encoding.py         half an hour on two idle cores; writes results/encoding.json

Six class tokens, in float32 and bfloat16, as they are and under `torch.compile`; batches of 64 are not compiled, as
their time is that of the multiplications. Random weights.
Aim: at most 0.92 of both peers. The multiplications are 0.957 of CLIPModel's (docs/performance.md).
"""

import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
from _measure import MOST_UNCERTAIN, arguments, find_peer, interleaved, median_and_uncertainty, ratio, write_record
from torch import Tensor
from tower import PEER, build

OURS, OPEN_CLIP = "cls H=6", "open_clip"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCHES, COMPILED_BATCHES = (1, 8, 64), (1, 8)
Encoder = Callable[[Tensor], object]
CALLS = {1: 16, 8: 2, 64: 1}  # of which one time is made: a single image alone is too short to be timed
TRIES = 4  # of a case during which the machine was busy


def encoder(name: str, dtype: torch.dtype) -> Encoder:
    if name == OPEN_CLIP:
        library = find_peer("open_clip")
        precision = "bf16" if dtype == torch.bfloat16 else "fp32"
        return library.create_model("ViT-B-16", precision=precision).eval().encode_image
    return build(name).to(dtype).eval().get_image_features


@torch.no_grad()
def encode(encoder: Encoder, images: Tensor, calls: int) -> None:
    for _ in range(calls):
        encoder(images)


def measure(encoders: dict[str, Encoder], images: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of a batch of each, and our ratio to each peer, in rounds that agree if the machine lets them."""
    calls, peers = CALLS[len(images)], [name for name in encoders if name != OURS]
    cases = {name: partial(encode, each, images, calls) for name, each in encoders.items()}
    for _ in range(TRIES):
        seconds = interleaved(cases, rounds)
        if all(median_and_uncertainty(seconds, OURS, peer)[1] <= MOST_UNCERTAIN for peer in peers):
            break
    rows = {name: {"seconds": statistics.median(found) / calls} for name, found in seconds.items()}
    rows[OURS] |= {f"ratio to {peer}": ratio(seconds, OURS, peer) for peer in peers}
    return rows


def main() -> None:
    options = arguments(__doc__, rounds=7)
    names = [PEER, OURS, *([OPEN_CLIP] if find_peer("open_clip") else [])]
    results: dict[str, dict[str, dict[str, float]]] = {}
    for precision, dtype in DTYPES.items():
        plain = {name: encoder(name, dtype) for name in names}
        compiled = {name: torch.compile(each) for name, each in plain.items()}
        for batch in BATCHES:
            images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(dtype)
            ways = {"": plain, **({", compiled": compiled} if batch in COMPILED_BATCHES else {})}
            for told, encoders in ways.items():
                case = f"{precision}, {batch}{told}"
                results[case] = measure(encoders, images, options.rounds)
                found = {key: round(value, 3) for key, value in results[case][OURS].items()}
                sys.stdout.write(f"{case:24} {found}\n")
    write_record("encoding", {"rounds": options.rounds, "aim": 0.92, "cases": results})


if __name__ == "__main__":
    main()
