"""Captions of 6 prompts about each image, by a LLaVA that is asked by this package, and by plain `generate`.

    python tests/benchmarks/captioning.py       some minutes on two cores; writes results/captioning.json

Random weights; an image takes 576 tokens as in LLaVA 1.5. Answers have 16 tokens each, or up to 32. Plain `generate`
takes all images of a batch at once, prompt by prompt. Between the two stands this package when it reads an image once
for all prompts, but decodes the answers to each apart. All have the same weights and batches, take turns, and have to
give the same captions. On one thread (`--threads 1`) the clock is that of the processor, which stands still while
other programs run. Target: 2.3 times as many captions in the same time.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _measure import arguments, interleaved, ratio, write_record
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from holistic_clip_hf.captioning.captioner import Work
from holistic_clip_hf.captioning.local_backend import LocalBackend, encode
from holistic_clip_hf.captioning.perspectives import Perspective, load_perspectives

TESTS = Path(__file__).resolve().parent.parent
PROMPTS = ["detail", "one_sentence", "short", "nouns", "main_object", "background"]
SIZES = {"image_size": 336, "patch_size": 14, "hidden_size": 512, "intermediate_size": 1_408}
SIZES |= {"num_hidden_layers": 8, "num_attention_heads": 8}
IMAGE_TOKENS, IMAGES = (336 // 14) ** 2, 4
# Budgets, and tokens that end an answer: none, or 10 of the vocabulary of 263.
CASES = {"16 tokens each": (16, None), "up to 32 tokens": (32, list(range(10)))}
TOGETHER, APART, PEER = "read once, decoded together", "read once, decoded apart", "plain generate"
TARGET = 2.3
Captions = dict[tuple[str, str], str]


def build(folder: Path, ends: list[int] | None) -> Path:
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]  # the model is one of the tests' own
    from tiny_captioner import make_tiny_captioner

    torch.manual_seed(0)
    make_tiny_captioner(folder, **SIZES)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": ends}))
    return folder


def work(budget: int) -> list[Work]:
    asked = [Perspective(each.name, each.prompt, budget) for each in load_perspectives(names=PROMPTS)]
    pixels = torch.randint(0, 256, (IMAGES, 336, 336, 3), generator=torch.Generator().manual_seed(0))
    images = [Image.fromarray(each.to(torch.uint8).numpy()) for each in pixels]
    return [Work(str(place), image, asked) for place, image in enumerate(images)]


def captions(backend: LocalBackend, budget: int) -> Captions:
    replies = list(backend.answer(work(budget)))
    if failed := [reply.error for reply in replies if reply.error]:
        raise RuntimeError(f"Got {len(failed)} answers that failed, such as {failed[0]!r}.")
    return {(reply.image_id, reply.perspective.name): reply.text for reply in replies}


def plain(name: str, lengths: list[int]) -> Callable[[int], Captions]:
    """Return what asks plain `generate`, and notes in `lengths` how many tokens each answer of the last call has."""
    model, processor = AutoModelForImageTextToText.from_pretrained(name), AutoProcessor.from_pretrained(name)
    ends = model.generation_config.eos_token_id or []

    def ask(budget: int) -> Captions:
        asked, found = work(budget), {}
        lengths.clear()
        for perspective in asked[0].perspectives:
            inputs = encode(processor, [each.image for each in asked], perspective.prompt or "")
            output = model.generate(**inputs, max_new_tokens=budget, do_sample=False)
            for each, tokens in zip(asked, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
                lengths.append(min(end + 1, len(tokens)))
                text = processor.tokenizer.decode(tokens[:end], skip_special_tokens=True).strip()
                found[each.image_id, perspective.name] = text
        return found

    return ask


def measure(name: str, budget: int, rounds: int) -> dict[str, Any]:
    lengths: list[int] = []
    backends = {case: LocalBackend(name, batch_size=IMAGES) for case in (TOGETHER, APART)}
    backends[APART]._generator.decodes_together = False
    cases: dict[str, Callable[[], Captions]] = {PEER: partial(plain(name, lengths), budget)}
    cases |= {case: partial(captions, backend, budget) for case, backend in backends.items()}
    if any(run() != cases[PEER]() for case, run in cases.items() if case != PEER):
        raise RuntimeError("Captions are not those of plain `generate`.")
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = interleaved(cases, rounds, clock)
    return {
        "tokens": {"fewest": min(lengths), "median": statistics.median(lengths), "most": max(lengths)},
        "seconds": {case: statistics.median(found) for case, found in seconds.items()},
        "ratio": ratio(seconds, PEER, TOGETHER),
        "ratio_apart": ratio(seconds, PEER, APART),
    }


def main() -> None:
    options = arguments(__doc__, rounds=7)
    cases = {}
    for case, (budget, ends) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            cases[case] = found = measure(str(build(Path(folder) / "llava", ends)), budget, options.rounds)
        sys.stdout.write(f"{case}: {found['tokens']}\n")
        for way, seconds in found["seconds"].items():
            speed = IMAGES * len(PROMPTS) / seconds
            sys.stdout.write(f"  {way:28} {seconds:8.2f} s   {speed:6.2f} captions a second\n")
        sys.stdout.write(f"  times as many captions: {found['ratio']:.2f}   target {TARGET}\n")
    sizes = {"image_tokens": IMAGE_TOKENS, "prompts": PROMPTS, "images": IMAGES, "sizes": SIZES}
    found = {"cases": cases, "throughput_ratio": cases["16 tokens each"]["ratio"], "target": TARGET}
    write_record("captioning", {"rounds": options.rounds, **sizes, **found})


if __name__ == "__main__":
    main()
