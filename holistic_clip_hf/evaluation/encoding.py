# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Encoding of images and texts, once, on the CPU, and the vectors that fusion makes of them.

Axes: N images, T texts, H branches, D projection width.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from datasets import Dataset
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoProcessor

from ..backbone_holistic_clip import Patches, join_patches
from ..checkpoint_files import require_all_weights, require_loadable
from ..configuration_holistic_clip import HolisticCLIPConfig
from ..images.decoding import UnreadableImageError, decode_image, read_image
from ..images.left_out import LeftOutLog, row_names, warn_of_all
from ..images.tables import undecoded
from ..modeling_holistic_clip import BranchFusion, HolisticCLIPModel
from ..processing_holistic_clip import HolisticCLIPProcessor
from ..storage import require_count
from .encoded_folder import EncodedBatch, EncodedFolder
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


def load_checkpoint(name: str | Path, revision: str | None = None) -> tuple[HolisticCLIPModel, HolisticCLIPProcessor]:
    """Load a checkpoint with its processor, as anybody would, onto the device that training would use.

    Args:
        name: Folder of a checkpoint, or its name on the Hub.
        revision: Commit, branch or tag on the Hub. Default: its main branch.

    Raises:
        ValueError: neither the folder of one of our checkpoints nor its name on the Hub, or a folder that is not safe
            to load.
    """
    if Path(name).is_dir():
        require_loadable(name, "model")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    expected = "expected the folder of a checkpoint of this package, or its name on the Hub"
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"`model` is {name}; {expected}. transformers says: {reason}.") from error
    if not isinstance(config, HolisticCLIPConfig):
        raise ValueError(
            f"`model` is {name}, a checkpoint of {config.model_type!r}; {expected}. Take other people's weights "
            "over with `holistic_clip_hf.initialization`."
        )
    try:
        model, report = AutoModel.from_pretrained(
            name,
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            revision=revision,
        )
    except (SafetensorError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"`model` is {name}, whose weights are damaged ({error}); expected whole ones. Download or save it again."
        ) from error
    require_all_weights(name, report["missing_keys"], "model")
    return model.to(device), AutoProcessor.from_pretrained(name, trust_remote_code=False, revision=revision)


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


class EncodedImages(NamedTuple):
    """Images of a data set as one model sees them.

    Args:
        branch_embeds: (N, H, D) of unit length, float32 on the CPU.
        rows: (N,) int64, the row of each.
        left_out: Reasons by name of the rows without an image that can be encoded.
    """

    branch_embeds: Tensor
    rows: Tensor
    left_out: Mapping[str, str] = MappingProxyType({})


# What a model takes of one image, by name: `pixel_values` (3, height, width). A NaFlex tower takes more.
Pixels = dict[str, Tensor]


def encode_images(
    model: DualEncoder,
    processor: Processor,
    dataset: Dataset,
    *,
    batch_size: int,
    progress: bool = False,
    encoded: EncodedFolder | None = None,
) -> EncodedImages:
    """Embed the column `image`, in the order of the rows; rows whose image is missing or does not decode are left out,
    and named in a warning each.

    Batches that `encoded` has are not encoded again. Raises `ValueError` for no rows, none with an image, and vectors
    that are not finite.
    """
    require_count("batch_size", batch_size)
    images, names, log = undecoded(dataset.select_columns("image")), row_names(dataset), LeftOutLog()
    branches: list[Tensor] = []
    rows: list[int] = []
    for start in tqdm(range(0, len(images), batch_size), desc="images", disable=not progress):
        given = images[start : start + batch_size]["image"]
        batch = _encode_images_of(model, processor, given, encoded)
        log.note({names[start + place]: reason for place, reason in sorted(batch.reasons.items())})
        if len(batch.embeds):
            branches.append(batch.embeds)
            rows += [start + place for place in range(len(given)) if place not in batch.reasons]
    if not len(images):
        raise ValueError("The dataset has no rows. Evaluate on a split that holds images.")
    if not rows:
        name, reason = next(iter(log.reasons.items()))
        raise ValueError(f"None of {len(images)} images is readable, such as {name}: {reason}. Check where they are.")
    embeds = torch.cat(branches)
    _require_finite(embeds, "image of row {}", rows)
    warn_of_all(len(log.reasons))
    return EncodedImages(embeds, torch.tensor(rows), log.reasons)


def _encode_images_of(
    model: DualEncoder, processor: Processor, images: Sequence[Any], encoded: EncodedFolder | None
) -> EncodedBatch:
    def encode() -> EncodedBatch:
        read = _read(processor, images)
        pixels = [each for each in read if not isinstance(each, str)]
        embeds = torch.empty(0)
        if pixels:
            with evaluation_mode(model):
                found = model.get_image_features(**on_device(stack_pixels(pixels), model.device)).branch_embeds
            embeds = found.float().cpu().clone()  # outside of inference mode again
        return EncodedBatch(embeds, {place: each for place, each in enumerate(read) if isinstance(each, str)})

    return encode() if encoded is None else encoded.images(images, encode)


def _read(processor: Processor, images: Sequence[Any]) -> list[Pixels | str]:
    """Return the pixels of each image, or the reason why it cannot be read.

    They are processed one by one, so that a batch of large photos is never held in full size.
    """
    decoded = (image_or_reason(image) for image in images)
    return [each if isinstance(each, str) else readable_pixels(processor, [each])[0] for each in decoded]


def image_or_reason(image: Any, *, is_mask: bool = False) -> Any:
    """Return the image of a row, decoded, or the reason why it cannot be read; of a mask, the values stay."""
    try:
        return decode_image(image) if is_mask else read_image(image)
    except UnreadableImageError as error:
        return str(error)


def stack_pixels(pixels: Sequence[Pixels]) -> dict[str, Tensor]:
    """Make a batch of what the processor makes of single images, of which there is at least one."""
    return {name: torch.stack([each[name] for each in pixels]) for name in pixels[0]}


def on_device(pixels: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return a batch of images on a device."""
    return {name: value.to(device) for name, value in pixels.items()}


def whole_image(model: Any, pixels: Mapping[str, Tensor]) -> Tensor:
    """Return what the processor made of one image as an image (1, 3, height, width), which maps need.

    The patches of a NaFlex tower's processor are put together again, so that rows and columns are the image's own.

    Args:
        model: the model.
        pixels: Batch of one image, as the processor of the model makes it.
    """
    config = model.vision_model.config
    return join_patches(Patches(**pixels), config.patch_size) if config.takes_patches else pixels["pixel_values"]


def readable_pixels(processor: Processor, images: Sequence[Any]) -> list[Pixels | str]:
    """Return for each image what a model takes of it, or the reason why the processor refuses it."""
    if not images:
        return []
    try:
        made = processor(images=list(images), return_tensors="pt")
        return [dict(zip(made, each, strict=True)) for each in zip(*made.values(), strict=True)]
    except ValueError as error:
        if len(images) == 1:
            return [f"the processor refuses it: {error}"]
        return [readable_pixels(processor, [image])[0] for image in images]


def encode_texts(
    model: DualEncoder,
    processor: Processor,
    texts: Sequence[str],
    *,
    batch_size: int,
    progress: bool = False,
    encoded: EncodedFolder | None = None,
) -> Tensor:
    """Embed T texts, in their order, as (T, D) of unit length, float32 on the CPU; equal texts are encoded once.

    Batches that `encoded` has are not encoded again. Raises `ValueError` for no texts, and vectors that are not
    finite.
    """
    if not texts:
        raise ValueError("There are no texts to encode. Pass at least one.")
    require_count("batch_size", batch_size)
    batches = _batches_of(texts, batch_size)
    found = [
        _encode_texts_of(model, processor, batch, encoded)
        for batch in tqdm(batches, desc="texts", disable=not progress)
    ]
    place = {text: row for row, text in enumerate(text for batch in batches for text in batch)}
    embeds = torch.cat(found)[[place[text] for text in texts]]
    _require_finite(embeds, "text number {}")
    return embeds


def written_caption(processor: Processor, text: str, perspective: str | None) -> str:
    """Return a text in the form that a model learned captions of a perspective in, as `encode_texts` is to get it.

    Args:
        processor: Processor of the model. One that is not of this package, such as CLIP's, has no form.
        text: Text, as somebody wrote it.
        perspective: Name of the perspective that it asks. A text of another one, or of none, stays as it is.
    """
    write = getattr(processor, "write_caption", None)
    return text if write is None else write(text, perspective)


def _batches_of(texts: Sequence[str], batch_size: int) -> list[list[str]]:
    """Return the distinct texts, of which neighbours in length share a batch, so that little is padded."""
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    return [distinct[start : start + batch_size] for start in range(0, len(distinct), batch_size)]


def _encode_texts_of(
    model: DualEncoder, processor: Processor, texts: list[str], encoded: EncodedFolder | None
) -> Tensor:
    def encode() -> EncodedBatch:
        tokens = processor(text=texts, return_tensors="pt", padding=True, truncation=True)
        with evaluation_mode(model):
            output = model.get_text_features(
                input_ids=tokens["input_ids"].to(model.device),
                attention_mask=tokens["attention_mask"].to(model.device),
            )
        return EncodedBatch(output.text_embeds.float().cpu().clone(), {})

    return (encode() if encoded is None else encoded.texts(texts, encode)).embeds


def encode_share(
    model: DualEncoder,
    processor: Processor,
    rows: Sequence[Dataset],
    texts: Sequence[str],
    encoded: EncodedFolder,
    *,
    batch_size: int,
    progress: bool = False,
) -> tuple[int, int]:
    """Encode the batches of images and texts that are the share of `encoded`, into its folder.

    They are those that `encode_images` of each data set and `encode_texts` would encode with the same batch size.

    Returns:
        Number of batches of the share, and of all.

    Raises:
        InUseError: another process encodes this share.
        OSError: the disk is full.
    """
    require_count("batch_size", batch_size)
    images = [undecoded(each.select_columns("image")) for each in rows]
    starts = [(each, start) for each in images for start in range(0, len(each), batch_size)]
    batches, shard = _batches_of(texts, batch_size), encoded.shard
    total = len(starts) + len(batches)
    with encoded.writing():
        for number in tqdm(range(shard.index, total, shard.count), desc="batches", disable=not progress):
            if number < len(starts):
                each, start = starts[number]
                _encode_images_of(model, processor, each[start : start + batch_size]["image"], encoded)
            else:
                _encode_texts_of(model, processor, batches[number - len(starts)], encoded)
    return len(range(shard.index, total, shard.count)), total


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


def _require_finite(embeds: Tensor, what: str, places: Sequence[int] | None = None) -> None:
    broken = embeds.flatten(1).isfinite().all(dim=1).logical_not().nonzero().flatten().tolist()
    if broken:
        first = broken[0] if places is None else places[broken[0]]
        raise ValueError(
            f"{len(broken)} of {len(embeds)} vectors are not finite, first that of the {what.format(first)}. "
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
