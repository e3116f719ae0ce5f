# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Graphs of both towers and of both together: what goes in and out, how they are written, and how they are compared.

Axes: N images, H branches, T texts, L tokens, D projection width.
"""

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from ..backbone_holistic_clip import Patches
from ..modeling_holistic_clip import HolisticCLIPModel
from ..processing_holistic_clip import HolisticCLIPProcessor
from ..publishing.stranger import TEXTS, probe_pictures
from ..storage import import_extra
from .verification import ProbeImages, furthest

TOLERANCE = 1e-4  # of unit vectors in float32
MOST_BYTES = 1_900_000_000  # of weights in a graph's own file; protobuf ends at 2 GiB
DATA = "_data"  # behind the name of a graph, the file of its weights, where transformers.js looks for it


class Graph(nn.Module):
    """A graph to write: a model, and the names of inputs and outputs."""

    name: str
    takes: tuple[str, ...]  # of `images` and `texts`
    outputs: tuple[str, ...]

    def __init__(self, model: HolisticCLIPModel) -> None:
        super().__init__()
        self.model = model
        patches = tuple(Patches._fields) if takes_patches(model) else ("pixel_values",)
        names = {"texts": ("input_ids", "attention_mask"), "images": patches}
        self.inputs = tuple(name for kind in self.takes for name in names[kind])

    def named(self, given: tuple[Tensor, ...]) -> dict[str, Any]:
        """Return inputs by name."""
        return dict(zip(self.inputs, given, strict=True))


class ImageGraph(Graph):
    """Images (N, 3, height, width), or what a NaFlex tower takes of them, to vectors, and one for each branch."""

    name = "vision_model"
    takes = ("images",)
    outputs = ("image_embeds", "branch_embeds")

    def forward(self, *given: Tensor) -> tuple[Any, ...]:
        """Return `pooler_output` (N, D) and `branch_embeds` (N, H, D)."""
        found = self.model.get_image_features(**self.named(given))
        return found.pooler_output, found.branch_embeds


class TextGraph(Graph):
    """Texts (T, L) to vectors."""

    name = "text_model"
    takes = ("texts",)
    outputs = ("text_embeds",)

    def forward(self, *given: Tensor) -> tuple[Any, ...]:
        """Return `pooler_output` (T, D)."""
        return (self.model.get_text_features(**self.named(given)).pooler_output,)


class JointGraph(Graph):
    """Images and texts to logits, which pipelines ask for."""

    name = "model"
    takes = ("texts", "images")
    outputs = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds", "branch_embeds")

    def forward(self, *given: Tensor) -> tuple[Any, ...]:
        """Return logits (N, T) and (T, N), and the vectors."""
        found = self.model(**self.named(given))
        return tuple(found[name] for name in self.outputs)


def stock_kind(model: HolisticCLIPModel) -> str:
    """Return the stock family that programs read a model's graphs by, `"siglip"` or `"clip"`."""
    return "siglip" if model.config.objective == "sigmoid" else "clip"


def takes_patches(model: HolisticCLIPModel) -> bool:
    """Tell whether the images of a model come as patches with a mask, as those of SigLIP 2's NaFlex variant do."""
    return model.vision_model.config.takes_patches


GRAPHS = (ImageGraph, TextGraph, JointGraph)


def require_exporter() -> None:
    """Raise `ImportError` if a package that writes graphs is not installed."""
    for name in ("onnx", "onnxscript"):
        import_extra(name, "export")


def write_graphs(
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    folder: Path,
    kinds: Sequence[type[Graph]] = GRAPHS,
    most_bytes: int = MOST_BYTES,
) -> dict[type[Graph], Path]:
    """Write graphs of ONNX into a folder, each with weights of its own, and return their files.

    Args:
        model: Model on the CPU in float32.
        processor: Processor of the model.
        folder: Folder that exists.
        kinds: Graphs to write.
        most_bytes: Size of weights beyond which they stand in a file beside the graph, `<graph>.onnx_data`.
    """
    # Of two images: a graph that is traced with one may hold for one alone.
    inputs = probe_inputs(processor, probe_pictures())
    files = {kind: folder / f"{kind.name}.onnx" for kind in kinds}
    for kind, path in files.items():
        write_graph(kind(model), inputs, path, most_bytes)
    return files


def probe_inputs(processor: HolisticCLIPProcessor, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
    """Return pictures, as the model takes them, and the texts (T, L) that graphs are run on."""
    tokens = processor(text=list(TEXTS), padding=True, return_tensors="pt")
    pixels = processor(images=pictures, return_tensors="pt")
    return {**pixels, "input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}


def write_graph(graph: Graph, inputs: Mapping[str, Tensor], path: Path, most_bytes: int) -> None:
    """Write one graph, with the weights in a file beside it if they are large."""
    import onnx

    images, texts = Dim("images"), Dim("texts")
    longest = getattr(graph.model.text_model.config, "max_position_embeddings", None)
    tokens = Dim("tokens") if longest is None else Dim("tokens", max=longest)
    shapes = {"pixel_values": {0: images}, **dict.fromkeys(("input_ids", "attention_mask"), {0: texts, 1: tokens})}
    if takes_patches(graph.model):
        patches = {0: images, 1: Dim("patches")}
        shapes |= {"pixel_values": patches, "pixel_attention_mask": patches, "spatial_shapes": {0: images}}
    given = tuple(inputs[name] for name in graph.inputs)
    with muted("torch.onnx"), warnings.catch_warnings(action="ignore"), torch.no_grad():
        program: Any = torch.onnx.export(
            graph,
            given,
            dynamo=True,
            verbose=False,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=(tuple(shapes[name] for name in graph.inputs),),
        )
    is_large = sum(value.nbytes for value in graph.state_dict().values()) > most_bytes
    if not is_large:
        program.save(path, external_data=False)
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        apart = Path(scratch) / path.name
        program.save(apart, external_data=True)
        onnx.save_model(onnx.load(apart), path, save_as_external_data=True, location=f"{path.name}{DATA}")


@contextmanager
def muted(name: str | None = None) -> Iterator[None]:
    """Keep a logger, or the root's, from warning, such as of packages that no graph of ours needs."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class Measure(NamedTuple):
    """A comparison of tensors, which of several results is the worst (NaN is), and if it is one of logits too."""

    measure: Callable[[Tensor, Tensor], float]
    worst: Callable[[Sequence[float]], Any]
    takes_logits: bool


def _cosine(found: Tensor, expected: Tensor) -> float:
    return float(F.cosine_similarity(found, expected, dim=-1).min())


FURTHEST = Measure(furthest, np.max, True)
LOWEST_COSINE = Measure(_cosine, np.min, False)  # logits have no direction
# From names of outputs and values of inputs to values of outputs.
Run = Callable[[Sequence[str], Mapping[str, np.ndarray]], Sequence[np.ndarray]]


class Verification(NamedTuple):
    """Graphs run on images and texts, and the model that they are held against."""

    model: HolisticCLIPModel
    processor: HolisticCLIPProcessor
    images: ProbeImages

    @torch.no_grad()
    def compare(
        self, files: Mapping[type[Graph], Path], open_graph: Callable[[Path], Run], measure: Measure
    ) -> dict[str, float]:
        """Run every graph on inputs, in another number than it was made with too, and compare with the model.

        Args:
            files: File of each graph.
            open_graph: Loader of a file.
            measure: Comparison of outputs.
        """
        found: dict[str, list[float]] = {}
        for kind, path in files.items():
            run, graph = open_graph(path), kind(self.model)
            for given in self._given(graph):
                answers = run(kind.outputs, {name: value.numpy() for name, value in given.items()})
                for name, answer, wanted in zip(kind.outputs, answers, graph(*given.values()), strict=True):
                    scale = float(self.model.logit_scale.exp()) if name.startswith("logits") else 1.0
                    if measure.takes_logits or not name.startswith("logits"):
                        value = measure.measure(torch.as_tensor(answer) / scale, wanted / scale)
                        found.setdefault(f"{path.stem} {name}", []).append(value)
        return {what: float(measure.worst(values)) for what, values in found.items()}

    def _given(self, graph: Graph) -> Iterator[dict[str, Tensor]]:
        """Yield the inputs of a graph: one image alone, and all in batches."""
        for number, pictures in enumerate(self.images.batches()):
            every = probe_inputs(self.processor, pictures)
            inputs = {name: every[name] for name in graph.inputs}
            if number == 0:
                yield {name: value[:1] for name, value in inputs.items()}
            yield inputs
            if "images" not in graph.takes:
                return  # texts are the same for all images
