"""Encoding and training, against `transformers.CLIPModel` measured side by side: ViT-B/16, 224 px, 8 images.

    python tests/benchmarks/tower.py            ten minutes on two cores; writes results/tower.json

Every time is a ratio to CLIPModel in the same round. Targets: encoding with 6 class tokens at most 0.97, with a 6-fold
MLP in 3 layers at most 1.6, with 6 class tokens that have such an MLP of their own at most 1.05; 8 x 6 captions of
mixed lengths at most 0.6 of padding all to the longest.
The peer is called as its processor's output asks: with the attention mask.
"""

import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
from _measure import MEBIBYTE, arguments, interleaved, peak_bytes, peak_in_fresh_process, ratio, write_record
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel

IMAGES, BRANCH_LAYERS, LONGEST = 8, 3, 77
# Tokens per caption, from ... to, as the paper's perspectives come: one long description, the others short.
TOKENS = ((5, 30), (40, 77), (6, 20), (10, 30), (10, 30), (8, 25))
PEER = "CLIPModel"
PAPER_TEXT, PAPER_VISION = {"hidden_act": "gelu"}, {"hidden_act": "gelu", "patch_size": 16}
VARIANTS = {PEER: (0, "")} | {f"{kind} H={count}": (count, kind) for kind in ("cls", "mlp") for count in (1, 5, 6)}
OWN_MLPS = "cls H=6, MLPs of their own"
VARIANTS[OWN_MLPS] = (6, "cls")
TRAINED = (PEER, "cls H=6", OWN_MLPS, "mlp H=6")
TARGETS = {"images": {"cls H=6": 0.97, OWN_MLPS: 1.05, "mlp H=6": 1.6}, "texts": {"packed": 0.6}}


def build(variant: str) -> CLIPModel | HolisticCLIPModel:
    """Both towers of ViT-B/16, with random weights."""
    torch.manual_seed(0)
    branches, kind = VARIANTS[variant]
    if variant == PEER:
        return CLIPModel(CLIPConfig(text_config=PAPER_TEXT, vision_config=PAPER_VISION))
    vision = {"num_branches": branches, "branch_type": kind, "num_branch_layers": BRANCH_LAYERS} | PAPER_VISION
    vision["branched_token_mlp"] = variant == OWN_MLPS
    return HolisticCLIPModel(HolisticCLIPConfig(text_config=PAPER_TEXT, vision_config=vision))


def captions() -> tuple[Tensor, Tensor]:
    """`input_ids` and `attention_mask` (N, M, 77)."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.stack(
        [torch.randint(low, high + 1, (IMAGES,), generator=generator) for low, high in TOKENS], dim=1
    )
    mask = torch.arange(LONGEST) < lengths[..., None]
    ids = torch.randint(0, 49406, mask.shape, generator=generator)
    ids = ids.where(mask, 49407).scatter(2, lengths[..., None] - 1, 49407)
    ids[0, 1], mask[0, 1] = ids[0, 1].clamp(max=49405), True  # one caption of full length, to which all are padded
    ids[0, 1, -1] = 49407
    return ids, mask.long()


def pixels() -> Tensor:
    return torch.randn(IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def encode_images(model: CLIPModel | HolisticCLIPModel) -> None:
    model.eval().get_image_features(pixels())


@torch.no_grad()
def encode_texts(model: HolisticCLIPModel, packed: bool) -> None:
    ids, mask = captions()
    if packed:
        model.eval().encode_captions(ids, mask)
    else:
        model.eval().get_text_features(ids.flatten(0, 1), mask.flatten(0, 1))


def training_step(model: CLIPModel | HolisticCLIPModel) -> None:
    """Forward, loss, backward. The peer is CLIP on several captions, written plainly: one image vector, each slot's
    captions padded to the longest, CLIP's loss in every slot.
    """
    model.train().zero_grad()
    ids, mask = captions()
    if isinstance(model, HolisticCLIPModel):
        model(input_ids=ids, attention_mask=mask, pixel_values=pixels(), return_loss=True).loss.backward()
        return
    images = F.normalize(model.get_image_features(pixels()).pooler_output, dim=-1)
    texts = F.normalize(model.get_text_features(ids.flatten(0, 1), mask.flatten(0, 1)).pooler_output, dim=-1)
    targets, losses = torch.arange(IMAGES), []
    for slot in texts.unflatten(0, ids.shape[:2]).unbind(dim=1):
        logits = model.logit_scale.exp() * images @ slot.T
        losses.append((F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2)
    torch.stack(losses).mean().backward()


def cases(part: str, only: str | None = None) -> dict[str, Callable[[], object]]:
    """What is timed in turn; the first is what the others are compared to."""
    if part == "texts":
        model = build("cls H=6")
        return {
            "padded to the longest": partial(encode_texts, model, packed=False),
            "packed": partial(encode_texts, model, packed=True),
        }
    step, variants = (encode_images, VARIANTS) if part == "images" else (training_step, TRAINED)
    return {variant: partial(step, build(variant)) for variant in variants if only in (None, variant)}


def measure(part: str, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds, ratio to the peer and peak memory of each case."""
    seconds = interleaved(cases(part), rounds)
    peer = next(iter(seconds))
    rows = {}
    for name, found in seconds.items():
        peak = peak_in_fresh_process(__file__, f"{part}: {name}") / MEBIBYTE
        target = TARGETS.get(part, {}).get(name)
        rows[name] = {"seconds": statistics.median(found), "ratio": ratio(seconds, name, peer), "peak_mib": peak}
        goal = "" if target is None else f"   target {target}"
        line = "{seconds:8.3f} s   ratio {ratio:5.3f}   peak {peak_mib:6.0f} MiB".format(**rows[name])
        sys.stdout.write(f"{part:9} {name:22} {line}{goal}\n")
    return rows


def main() -> None:
    options = arguments(__doc__, rounds=5)
    if options.memory:
        part, _, name = options.memory.partition(": ")
        sys.stdout.write(f"{peak_bytes(cases(part, only=name)[name])}\n")
        return
    results = {part: measure(part, options.rounds) for part in ("images", "texts", "training")}
    write_record("tower", {"rounds": options.rounds, "tokens_per_caption": TOKENS, "targets": TARGETS, **results})


if __name__ == "__main__":
    main()
