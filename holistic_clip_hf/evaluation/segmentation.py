# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Zero-shot segmentation: each pixel is given the class whose name its patch agrees with most.

Images larger than the model's own size are seen through a sliding window; scores of overlapping windows are averaged,
scaled up to the mask's size, and compared. No loss trained patches to agree with texts: what is measured is what the
tower brings along. Two readouts of a patch:

- `class_path`: the last layer's output, as for class tokens.
- `value`: the last attention's value, past its output projection alone, since mixing tokens blurs places (MaskCLIP,
  https://arxiv.org/abs/2112.01071).

Axes: N images, C classes, P patches, D projection width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..images.left_out import LeftOutLog, row_names, warn_of_all
from ..images.tables import undecoded
from ..modeling_holistic_clip import HolisticCLIPModel
from .classification import checked_names
from .encoding import Processor, evaluation_mode, image_or_reason, whole_image
from .records import Detail, Provenance, Record, Recorder

TASK = "segmentation"
READOUTS = ("class_path", "value")
IGNORED = 255  # of a mask's pixels: neither right nor wrong, the convention of Pascal VOC


@dataclass(frozen=True)
class Windows:
    """Windows through which an image is seen.

    Args:
        short_side: pixels that the shorter side is scaled to; at least the model's image size. 336 at a window of 224
            is what the field uses for VOC, Context and COCO (SCLIP, https://arxiv.org/abs/2312.01597).
        stride: Stride of windows, as a share of their side; the field's one half.
    """

    short_side: int = 336
    stride: float = 0.5


@dataclass(frozen=True)
class PixelClasses:
    """Classes that a pixel may be of.

    Args:
        names: C names, in the order of the masks' indices.
        embeds: (C, D), unit length, one for each class.
        background: Index of the class that is everything else. To leave its pixels out altogether, as for VOC's 20
            classes, leave it out of the names and mask it as `IGNORED`.
        threshold: Probability below which a pixel's most likely class gives way to the background. Results depend on
            it strongly, so it is part of the record. Default: the background's text decides.
    """

    names: Sequence[str]
    embeds: Tensor
    background: int | None = None
    threshold: float | None = None

    def decide(self, scores: Tensor, logit_scale: float) -> Tensor:
        """Return the class (height, width) of each pixel, by its cosines (C, height, width) with all classes."""
        predicted = scores.argmax(dim=0)
        if self.threshold is None or self.background is None:
            return predicted
        foreground = torch.arange(len(scores)) != self.background
        likely, best = (logit_scale * scores[foreground]).softmax(dim=0).max(dim=0)
        return torch.where(likely < self.threshold, self.background, foreground.nonzero().squeeze(1)[best])


def evaluate_segmentation(
    model: HolisticCLIPModel,
    processor: Processor,
    dataset: Dataset,
    *,
    provenance: Provenance,
    classes: PixelClasses,
    windows: Windows | None = None,
    readout: str = "class_path",
    progress: bool = False,
) -> list[Record]:
    """Measure mean intersection over union, mean accuracy of classes, and accuracy of pixels.

    Means are over the classes that the masks show. A class that is predicted and never there is not among them; its
    pixels count against the classes that they were taken from. (mmsegmentation counts it as 0, which differs where
    few images show few of many classes; on the whole benchmarks all classes are there.)

    Args:
        dataset: N rows of `image` and `mask`, an image of one channel that holds class indices, `IGNORED` apart.
        classes: Classes of the masks. `mean_iou` is with the background; `mean_iou_foreground` leaves it out of the
            mean, while its pixels still count against a class that they are taken for.
        windows: Default: one or a few windows of the model's own image size.
        readout: One of `READOUTS`.
        progress: True to show a bar.

    A row is left out, and named in a warning, if its image or mask does not decode, or if the mask has another size or
    an index without a class.

    Raises:
        ValueError: no rows, none that can be used, no pixel that counts, a class without a name, vectors that are not
            finite, or contradicting arguments.
    """
    windows = windows or Windows(short_side=model.vision_model.config.image_size)
    _check_arguments(model, classes, windows, readout)
    names, background = checked_names(classes.names), classes.background
    if len(dataset) == 0:
        raise ValueError("The dataset has no rows. Evaluate on a split that holds images.")
    called, log = row_names(dataset), LeftOutLog()
    counts = torch.zeros(len(names), len(names), dtype=torch.int64)
    with evaluation_mode(model):
        rows = undecoded(undecoded(dataset), "mask")
        for index, row in enumerate(tqdm(rows, desc="masks", disable=not progress)):
            image = image_or_reason(row["image"])
            mask = image if isinstance(image, str) else _read_mask(row["mask"], image.size, len(names))
            if isinstance(mask, str):
                log.note({called[index]: mask})
                continue
            scores = score_pixels(model, processor, image, classes.embeds, windows, readout)
            if not scores.isfinite().all():
                raise ValueError(f"Row {index}: the model's scores are not finite. Check its weights.")
            predicted = classes.decide(scores, model.logit_scale.exp().item())
            counts += confusion(predicted, mask, len(names))
    warn_of_all(len(log.reasons))
    if log.reasons and len(log.reasons) == len(dataset):
        name, reason = next(iter(log.reasons.items()))
        raise ValueError(f"None of {len(dataset)} rows can be used, such as {name}: {reason}. Check the data set.")
    if counts.sum() == 0:
        raise ValueError(f"All pixels of all masks are {IGNORED}, which is ignored. There is nothing to measure.")
    details: dict[str, Detail] = {
        "readout": readout,
        "short_side": windows.short_side,
        "stride": windows.stride,
        "background": "none" if background is None else names[background],
        "background_threshold": "none" if classes.threshold is None else classes.threshold,
    }
    num_images, recorder = len(dataset) - len(log.reasons), Recorder(provenance, TASK, len(log.reasons))
    return _records(counts, num_images, background, recorder, details)


def score_pixels(
    model: HolisticCLIPModel,
    processor: Processor,
    image: Image.Image,
    class_embeds: Tensor,
    windows: Windows,
    readout: str,
) -> Tensor:
    """Return the cosine of each pixel of the image with each class: (C, height, width), float32 on the CPU."""
    scaled = _scale(image, windows.short_side)
    side = model.vision_model.config.image_size
    grid = side // model.vision_model.config.patch_size
    options = {"do_resize": False, "do_center_crop": False}
    if model.vision_model.config.takes_patches:
        options["max_num_patches"] = grid**2  # a NaFlex tower's processor fills up to as many
    total = torch.zeros(len(class_embeds), scaled.height, scaled.width)
    seen = torch.zeros(scaled.height, scaled.width)
    for left, top in _places(scaled.size, side, max(1, round(side * windows.stride))):
        window = scaled.crop((left, top, left + side, top + side))
        pixels = whole_image(model, processor(images=[window], return_tensors="pt", **options))
        patches = read_patches(model, pixels.to(model.device), readout)[0]
        scores = (patches @ class_embeds.to(patches).T).T.unflatten(1, (grid, grid))
        scores = F.interpolate(scores[None].float().cpu(), size=(side, side), mode="bilinear")[0]
        total[:, top : top + side, left : left + side] += scores
        seen[top : top + side, left : left + side] += 1
    return F.interpolate((total / seen)[None], size=(image.height, image.width), mode="bilinear")[0]


def read_patches(model: HolisticCLIPModel, pixel_values: Tensor, readout: str) -> Tensor:
    """Map (N, 3, height, width) to (N, P, D) of unit length; of patches of each branch the mean over branches.

    The head of probes reads patches by their values in any case.

    Raises:
        ValueError: values of a tower that is not CLIP's.
    """
    if readout == "class_path" or model.vision_model.head is not None:
        return F.normalize(model.get_patch_features(pixel_values).patch_embeds, dim=-1)
    tower, before = model.vision_model, []
    if not hasattr(tower, "encoder"):
        raise ValueError(
            f"`readout` is {readout!r} and the tower is of model type {tower.config.backbone.model_type!r}; expected "
            "'class_path', since only the values of CLIP's last attention are known. Choose that."
        )
    last = tower.encoder.layers[-1]
    handle = last.layer_norm1.register_forward_hook(lambda module, given, output: before.append(output))
    try:
        tower(pixel_values, return_dict=True)
    finally:
        handle.remove()
    values = last.self_attn.out_proj(last.self_attn.v_proj(before[0]))
    embeds = F.normalize(model.visual_projection(tower.patch_states(values)), dim=-1)
    return embeds if embeds.ndim == 3 else F.normalize(embeds.mean(dim=1), dim=-1)


def confusion(predicted: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Count pixels by true class and predicted class: (C, C). Ignored pixels are not counted.

    Raises `ValueError` for an index without a class, which would count as another class's.
    """
    counted = mask != IGNORED
    for name, given in (("predicted", predicted[counted]), ("mask", mask[counted])):
        if bool(((given < 0) | (given >= num_classes)).any()):
            raise ValueError(f"`{name}` has class indices beyond the {num_classes} classes. They count from 0.")
    places = mask[counted].long() * num_classes + predicted[counted].long()
    return places.bincount(minlength=num_classes**2).reshape(num_classes, num_classes)


def intersection_over_union(counts: Tensor) -> Tensor:
    """Return the IoU (C,) of confusion counts (C, C); NaN for a class that is neither present nor predicted."""
    right = counts.diagonal().double()
    return right / (counts.sum(dim=0) + counts.sum(dim=1) - right)


def _scale(image: Image.Image, short_side: int) -> Image.Image:
    if image.mode in ("P", "1"):  # Pillow scales these by the nearest pixel only
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    factor = short_side / min(image.size)
    width, height = (max(short_side, round(length * factor)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _places(size: tuple[int, int], side: int, stride: int) -> Iterator[tuple[int, int]]:
    """Return the left and top of each window; the last of a row and of a column end at the border."""
    starts = [
        sorted({min(start, length - side) for start in range(0, length - side + stride, stride)}) for length in size
    ]
    yield from ((left, top) for top in starts[1] for left in starts[0])


def _read_mask(given: object, size: tuple[int, int], num_classes: int) -> Tensor | str:
    """Return the class of each pixel, (height, width) int64, or the reason why the mask cannot be used."""
    mask = image_or_reason(given, is_mask=True)
    if isinstance(mask, str):
        return f"its mask: {mask}"
    if mask.size != size:
        return f"its mask has the size {mask.size}, and the image {size}"
    array = np.asarray(mask)
    if array.ndim != 2:
        return f"its mask is of mode {mask.mode}, and not one channel of class indices"
    labels = torch.from_numpy(array.astype(np.int64))
    if unknown := sorted(set(labels.unique().tolist()) - {*range(num_classes), IGNORED}):
        return f"its mask has the class indices {unknown}, beyond the {num_classes} classes"
    return labels


def _check_arguments(model: HolisticCLIPModel, classes: PixelClasses, windows: Windows, readout: str) -> None:
    side, count = model.vision_model.config.image_size, len(classes.names)
    if windows.short_side < side or not 0 < windows.stride <= 1:
        raise ValueError(
            f"`windows` is {windows}; expected `short_side` from {side}, the model's size, and `stride` up to 1."
        )
    if readout not in READOUTS:
        raise ValueError(f"`readout` is {readout!r}; expected one of {', '.join(READOUTS)}.")
    if count > IGNORED:
        raise ValueError(f"`names` has {count} classes; expected at most {IGNORED}, the index of ignored pixels.")
    if tuple(classes.embeds.shape) != (expected := (count, model.config.projection_dim)):
        raise ValueError(f"`embeds` has shape {tuple(classes.embeds.shape)}; expected {expected}, a row per name.")
    if classes.background is not None and not 0 <= classes.background < count:
        raise ValueError(f"`background` is {classes.background}; expected the index of one of {count} classes.")
    if classes.threshold is not None and classes.background is None:
        raise ValueError("`threshold` needs `background`, the class of the pixels below it.")


def _records(
    counts: Tensor, num_images: int, background: int | None, recorder: Recorder, details: Mapping[str, Detail]
) -> list[Record]:
    there = counts.sum(dim=1) > 0
    foreground = there.clone()
    if background is not None:
        foreground[background] = False
    overlap, right = intersection_over_union(counts), counts.diagonal().double()
    values = {
        "mean_iou": overlap[there].mean(),
        "mean_class_accuracy": (right / counts.sum(dim=1))[there].mean(),
        "pixel_accuracy": right.sum() / counts.sum(),
    }
    if background is not None and foreground.any():
        values["mean_iou_foreground"] = overlap[foreground].mean()
    sizes = {"n_images": num_images, "n_classes": int(there.sum()), "n_pixels": int(counts.sum())}
    return [recorder.record(name, value.item(), details, sizes) for name, value in values.items()]
