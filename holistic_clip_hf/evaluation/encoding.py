# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Encoding of images and texts, once, on the CPU, and the vectors that fusion makes of them.

Axes: N images, T texts, H branches, D projection width.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from datasets import Dataset
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoProcessor

from ..configuration_holistic_clip import HolisticCLIPConfig
from ..images.decoding import UnreadableImageError, decode_image
from ..images.tables import undecoded
from ..modeling_holistic_clip import BranchFusion, HolisticCLIPModel
from ..processing_holistic_clip import HolisticCLIPProcessor
from ..storage import require_count
from .ranking import Score, dot
from .records import FUSED, Detail

Processor = Callable[..., Mapping[str, Tensor]]


class DualEncoder(Protocol):
    """Interface of a model: `HolisticCLIPModel`, from the package or from the Hub."""

    config: Any
    training: bool
    branch_fusion: Any
    logit_scale: Tensor

    @property
    def device(self) -> torch.device: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def eval(self) -> Any: ...

    def get_image_features(self, pixel_values: Tensor) -> Any: ...

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Any: ...


def load_checkpoint(name: str | Path) -> tuple[HolisticCLIPModel, HolisticCLIPProcessor]:
    """Load a checkpoint with its processor, as anybody would, onto the device that training would use.

    Raises:
        ValueError: neither the folder of one of our checkpoints nor its name on the Hub.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    expected = "expected the folder of a checkpoint of this package, or its name on the Hub"
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"`model` is {name}; {expected}. transformers says: {reason}.") from error
    if not isinstance(config, HolisticCLIPConfig):
        raise ValueError(
            f"`model` is {name}, a checkpoint of {config.model_type!r}; {expected}. Take other people's weights "
            "over with `holistic_clip_hf.initialization`."
        )
    try:
        model = AutoModel.from_pretrained(name, config=config, trust_remote_code=False).to(device)
    except (SafetensorError, EOFError, RuntimeError) as error:  # the last one, if a shape is not the configuration's
        raise ValueError(
            f"`model` is {name}, whose weights are damaged ({error}); expected whole ones. Download or save it again."
        ) from error
    return model, AutoProcessor.from_pretrained(name, trust_remote_code=False)


@contextmanager
def evaluation_mode(model: DualEncoder) -> Iterator[None]:
    """Switch off dropout and gradients inside. Afterwards each module trains or not as before."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in before:
            module.training = training


def encode_images(
    model: DualEncoder, processor: Processor, dataset: Dataset, *, batch_size: int, progress: bool = False
) -> Tensor:
    """Embed the column `image` of N rows, in their order: (N, H, D) of unit length, float32 on the CPU.

    Raises `ValueError` for no rows, a row whose image is missing or does not decode, and vectors that are not finite.
    """
    require_count("batch_size", batch_size)
    images, branches = undecoded(dataset.select_columns("image")), []
    with evaluation_mode(model):
        for start in tqdm(range(0, len(images), batch_size), desc="images", disable=not progress):
            batch = [
                decode_row(image, row) for row, image in enumerate(images[start : start + batch_size]["image"], start)
            ]
            pixel_values = processor(images=batch, return_tensors="pt")["pixel_values"]
            output = model.get_image_features(pixel_values=pixel_values.to(model.device))
            branches.append(output.branch_embeds.float().cpu())
    if not branches:
        raise ValueError("The dataset has no rows. Evaluate on a split that holds images.")
    embeds = torch.cat(branches).clone()  # outside of inference mode again
    _require_finite(embeds, "image of row {}")
    return embeds


def encode_texts(
    model: DualEncoder, processor: Processor, texts: Sequence[str], *, batch_size: int, progress: bool = False
) -> Tensor:
    """Embed T texts, in their order, as (T, D) of unit length, float32 on the CPU; equal texts are encoded once.

    Raises `ValueError` for no texts, and vectors that are not finite.
    """
    if not texts:
        raise ValueError("There are no texts to encode. Pass at least one.")
    require_count("batch_size", batch_size)
    # Neighbours in length share a batch, so little is padded.
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    found = []
    with evaluation_mode(model):
        for start in tqdm(range(0, len(distinct), batch_size), desc="texts", disable=not progress):
            batch = distinct[start : start + batch_size]
            tokens = processor(text=batch, return_tensors="pt", padding=True, truncation=True)
            output = model.get_text_features(
                input_ids=tokens["input_ids"].to(model.device),
                attention_mask=tokens["attention_mask"].to(model.device),
            )
            found.append(output.text_embeds.float().cpu())
    place = {text: row for row, text in enumerate(distinct)}
    embeds = torch.cat(found)[[place[text] for text in texts]]
    _require_finite(embeds, "text number {}")
    return embeds


def first_read_alike(processor: Processor, texts: Sequence[str], *, batch_size: int) -> dict[str, str]:
    """Map each text to the first with the same tokens, as far as they fit: a model cannot tell the two apart."""
    first: dict[tuple[int, ...], str] = {}
    found = {}
    for start in range(0, len(texts), batch_size):
        batch = list(texts[start : start + batch_size])
        tokens = processor(text=batch, return_tensors="pt", padding=True, truncation=True)
        for text, ids, mask in zip(batch, tokens["input_ids"], tokens["attention_mask"], strict=True):
            found[text] = first.setdefault(tuple(ids[mask.bool()].tolist()), text)
    return found


def decode_row(image: Any, row: int) -> Image.Image:
    """Return the image of a row that is evaluated.

    Raises:
        ValueError: it does not decode.
    """
    try:
        return decode_image(image)
    except UnreadableImageError as error:
        raise ValueError(f"Row {row}: {error}. Repair the image, or leave the row out before evaluating.") from error


def _require_finite(embeds: Tensor, what: str) -> None:
    broken = embeds.flatten(1).isfinite().all(dim=1).logical_not().nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"{len(broken)} of {len(embeds)} vectors are not finite, first that of the {what.format(broken[0])}. "
            "Check the model's weights, and its precision if it runs in half."
        )


class FusedVectors(NamedTuple):
    """Vectors that `score` compares: one per image and text if fusion is linear, else (N, H, D) and (T, D).

    Sets of captions are (S, M, D) then.
    """

    images: Tensor
    texts: Tensor
    score: Score


def fuse(model: DualEncoder, branch_embeds: Tensor, text_embeds: Tensor) -> FusedVectors:
    """Return branches (N, H, D) and texts (T, D), as the model's fusion compares them."""
    return fuse_by(model.branch_fusion, model.logit_scale, branch_embeds, text_embeds)


def fuse_by(fusion: BranchFusion, logit_scale: Tensor, branch_embeds: Tensor, text_embeds: Tensor) -> FusedVectors:
    """Fuse as `fuse` does, by a fusion outside a model; a copy of it on the CPU is asked."""
    score = score_of(fusion, logit_scale)
    if not fusion.is_linear:
        return FusedVectors(branch_embeds, text_embeds, score)
    copied = copy.deepcopy(fusion).float().cpu()
    with torch.inference_mode():
        return FusedVectors(copied.image_vectors(branch_embeds), copied.text_vectors(text_embeds), score)


def score_of(fusion: BranchFusion, logit_scale: Tensor) -> Score:
    """Return the score of what a model answers: of fused vectors if fusion is linear, else of (N, H, D) and (T, D)."""
    if fusion.is_linear:
        return dot
    copied, scale = copy.deepcopy(fusion).float().cpu(), logit_scale.detach().double().exp().cpu()
    return lambda images, texts: copied.similarity(images, texts, scale)


def vectors_by_name(
    model: DualEncoder, branch_embeds: Tensor, text_embeds: Tensor, *, with_branches: bool = True
) -> Iterator[tuple[dict[str, Detail], FusedVectors]]:
    """Yield the fused vectors first, then each branch where there are several; with what a record says of them.

    Raises `ValueError` for a branch with the name that records keep for the fused vector.
    """
    names = list(model.config.perspectives)
    if FUSED in names:
        raise ValueError(f"A branch is called {FUSED!r}, the name of the fused vector in records. Rename the branch.")
    yield {"branch": FUSED, "fusion": model.config.fusion}, fuse(model, branch_embeds, text_embeds)
    if with_branches and len(names) > 1:
        for name, images in zip(names, branch_embeds.unbind(dim=1), strict=True):
            yield {"branch": name}, FusedVectors(images, text_embeds, dot)
