"""Captions of 6 prompts about each image, by a LLaVA that reads an image once, and one that reads it for every prompt.

    python tests/benchmarks/captioning.py       some minutes on two cores; writes results/captioning.json

Random weights; an image takes 576 tokens as in LLaVA 1.5, an answer 16. Both are the same weights and batches, taking
turns, and have to give the same captions. Target: 2 times as many captions in the same time.
"""

import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from _measure import arguments, interleaved, ratio, write_record
from PIL import Image

from holistic_clip_hf.captioning.captioner import Work
from holistic_clip_hf.captioning.local_backend import LocalBackend
from holistic_clip_hf.captioning.perspectives import Perspective, load_perspectives

TESTS = Path(__file__).resolve().parent.parent
PROMPTS = ["detail", "one_sentence", "short", "nouns", "main_object", "background"]
SIZES = {"image_size": 336, "patch_size": 14, "hidden_size": 512, "intermediate_size": 1_408}
SIZES |= {"num_hidden_layers": 8, "num_attention_heads": 8}
IMAGE_TOKENS, NEW_TOKENS, IMAGES = (336 // 14) ** 2, 16, 4
SHARED, PEER = "read once", "read for every prompt"
TARGET = 2.0


def build(folder: Path) -> Path:
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]  # the model is one of the tests' own
    from tiny_captioner import make_tiny_captioner

    torch.manual_seed(0)
    return make_tiny_captioner(folder, **SIZES)


def work() -> list[Work]:
    asked = [Perspective(each.name, each.prompt, NEW_TOKENS) for each in load_perspectives(names=PROMPTS)]
    pixels = torch.randint(0, 256, (IMAGES, 336, 336, 3), generator=torch.Generator().manual_seed(0))
    images = [Image.fromarray(each.to(torch.uint8).numpy()) for each in pixels]
    return [Work(str(place), image, asked) for place, image in enumerate(images)]


def captions(backend: LocalBackend) -> dict[tuple[str, str], str]:
    replies = list(backend.answer(work()))
    if failed := [reply.error for reply in replies if reply.error or reply.finished]:
        raise RuntimeError(f"Got {len(failed)} answers that failed or ended early, such as {failed[0]!r}.")
    return {(reply.image_id, reply.perspective.name): reply.text for reply in replies}


def main() -> None:
    options = arguments(__doc__, rounds=3)
    with tempfile.TemporaryDirectory() as folder:
        name = str(build(Path(folder) / "llava"))
        backends = {
            case: LocalBackend(name, batch_size=IMAGES, share_prefix=case == SHARED) for case in (PEER, SHARED)
        }
        if captions(backends[SHARED]) != captions(backends[PEER]):
            raise RuntimeError("Sharing the prefix changed captions.")
        cases = {case: partial(captions, backend) for case, backend in backends.items()}
        seconds = interleaved(cases, options.rounds)
    results = {
        "image_tokens": IMAGE_TOKENS,
        "new_tokens": NEW_TOKENS,
        "prompts": PROMPTS,
        "images": IMAGES,
        "sizes": SIZES,
        "seconds": {case: statistics.median(found) for case, found in seconds.items()},
        "throughput_ratio": ratio(seconds, PEER, SHARED),
        "target": TARGET,
    }
    for case, found in results["seconds"].items():
        sys.stdout.write(f"{case:22} {found:8.2f} s   {IMAGES * len(PROMPTS) / found:6.2f} captions a second\n")
    sys.stdout.write(f"times as many captions: {results['throughput_ratio']:.2f}   target {TARGET}\n")
    write_record("captioning", {"rounds": options.rounds, **results})


if __name__ == "__main__":
    main()
