# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Both towers and the model of both in ONNX, for ONNX Runtime and transformers.js.

Each graph has its weights by itself. Exporters write the weights of every graph to `model.onnx.data`, so that in one
folder the second tower's replace the first's, whose vectors are then wrong without an error. What was written is run
on pictures and texts, and compared with the checkpoint, before it takes its place.

Axes: N images, H branches, T texts, L tokens, D projection width.
"""

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F
from transformers import CLIPProcessor, Siglip2Processor, SiglipProcessor

from ..backbone_holistic_clip import Patches
from ..modeling_holistic_clip import HolisticCLIPModel
from ..processing_holistic_clip import HolisticCLIPProcessor
from ..publishing.stranger import TEXTS, probe_pictures
from ..storage import import_extra, write_json
from .stock_folder import ExportError, furthest, new_folder, require_close, save_processor

# By layout: the folder of the graphs.
ONNX_LAYOUTS = {"onnx": "", "transformers.js": "onnx"}
TOLERANCE = 1e-4  # of unit vectors in float32
MOST_BYTES = 1_900_000_000  # of weights in a graph's own file; protobuf ends at 2 GiB
QUANTISED = "_quantized"  # as transformers.js looks for 8 bits
FEWEST_COSINE = 0.9  # of int8; less is not the model any more
REPORT = "export.json"


class _Graph(nn.Module):
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


class _Images(_Graph):
    """Images (N, 3, height, width), or what a NaFlex tower takes of them, to vectors, and one for each branch."""

    name = "vision_model"
    takes = ("images",)
    outputs = ("image_embeds", "branch_embeds")

    def forward(self, *given: Tensor) -> tuple[Any, ...]:
        """Return `pooler_output` (N, D) and `branch_embeds` (N, H, D)."""
        found = self.model.get_image_features(**self.named(given))
        return found.pooler_output, found.branch_embeds


class _Texts(_Graph):
    """Texts (T, L) to vectors."""

    name = "text_model"
    takes = ("texts",)
    outputs = ("text_embeds",)

    def forward(self, *given: Tensor) -> tuple[Any, ...]:
        """Return `pooler_output` (T, D)."""
        return (self.model.get_text_features(**self.named(given)).pooler_output,)


class _Both(_Graph):
    """Images and texts to logits, which pipelines ask for."""

    name = "model"
    takes = ("texts", "images")
    outputs = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds", "branch_embeds")

    def forward(self, *given: Tensor) -> tuple[Any, ...]:
        """Return logits (N, T) and (T, N), and the vectors."""
        found = self.model(**self.named(given))
        return tuple(found[name] for name in self.outputs)


def takes_patches(model: HolisticCLIPModel) -> bool:
    """Tell whether the images of a model come as patches with a mask, as those of SigLIP 2's NaFlex variant do."""
    return model.vision_model.config.takes_patches


GRAPHS = (_Images, _Texts, _Both)


class OnnxExport(NamedTuple):
    """Graphs of an export, measured on two pictures and three texts.

    Args:
        files: Names of the graphs in the folder.
        differences: The largest difference to the checkpoint, by graph and output.
        cosines: The lowest cosine of an int8 vector to the checkpoint's, by graph and output; empty without int8.
    """

    files: list[str]
    differences: dict[str, float]
    cosines: dict[str, float]


def export_onnx(
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    output: str | Path,
    *,
    layout: str = "onnx",
    int8: bool = False,
    most_bytes: int = MOST_BYTES,
) -> OnnxExport:
    """Write the graphs of both towers and of both together, with configuration, tokenizer and both processor files.

    Args:
        model: the model.
        processor: Processor of the model; the stock one is written.
        output: Folder to write, new or empty.
        layout: `"onnx"`, graphs beside the configuration, or `"transformers.js"`, graphs in `onnx/` and a
            configuration by which its classes of CLIP or SigLIP take them.
        int8: write graphs with 8-bit weights too, named `*_quantized.onnx`.
        most_bytes: Size of weights beyond which they stand in a file beside the graph, `<graph>.onnx_data`.

    Raises:
        ValueError: an unknown layout, or one that does not take the model's images; a folder that holds anything.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        ExportError: what was written gives other numbers.
    """
    if layout not in ONNX_LAYOUTS:
        raise ValueError(f"`layout` is {layout!r}; expected one of {', '.join(map(repr, ONNX_LAYOUTS))}.")
    for name in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(name, "export")
    if layout == "transformers.js" and takes_patches(model):
        raise ValueError(
            f"`layout` is {layout!r} and the model takes images of any shape (NaFlex), as patches with a mask; "
            "expected one of a fixed size, since the class of that library hands over pixels alone. Take 'onnx'."
        )
    plain = copy.deepcopy(model).float().cpu().eval()
    inputs = _inputs(processor)
    with new_folder(Path(output)) as folder:
        graphs = folder / ONNX_LAYOUTS[layout]
        graphs.mkdir(exist_ok=True)
        is_sigmoid = plain.config.objective == "sigmoid"
        siglips = Siglip2Processor if takes_patches(plain) else SiglipProcessor
        save_processor(siglips if is_sigmoid else CLIPProcessor, processor, folder)
        chunks = {}
        for kind in GRAPHS:
            path = graphs / f"{kind.name}.onnx"
            chunks[path.name] = int(_write(kind(plain), inputs, path, most_bytes))
        # All are written before any is run: one may have replaced what another needs.
        differences = _compared(plain, inputs, graphs, "", _furthest)
        require_close(differences, TOLERANCE)
        cosines: dict[str, float] = {}
        if int8:
            for kind in GRAPHS:
                _quantise(graphs / f"{kind.name}.onnx")
            cosines = _compared(plain, inputs, graphs, QUANTISED, _lowest_cosine)
            _require_alike(cosines)
        write_json(folder / "config.json", _configuration(plain, layout, chunks))
        files = sorted(path.relative_to(folder).as_posix() for path in graphs.glob("*.onnx*"))
        report = OnnxExport(files, differences, cosines)
        write_json(folder / REPORT, report._asdict())
    return report


def _inputs(processor: HolisticCLIPProcessor) -> dict[str, Tensor]:
    tokens = processor(text=list(TEXTS), padding=True, return_tensors="pt")
    pixels = processor(images=probe_pictures(), return_tensors="pt")
    return {**pixels, "input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}


def _configuration(model: HolisticCLIPModel, layout: str, chunks: Mapping[str, int]) -> dict[str, Any]:
    """Return the configuration beside the graphs, which transformers.js reads by CLIP's or SigLIP's name."""
    fields = {name: value for name, value in model.config.to_dict().items() if name != "auto_map"}
    if layout == "onnx":
        return fields
    kind = "siglip" if model.config.objective == "sigmoid" else "clip"
    architecture = {"siglip": "SiglipModel", "clip": "CLIPModel"}[kind]
    found = {**fields, "model_type": kind, "architectures": [architecture]}
    if any(chunks.values()):
        found["transformers.js_config"] = {"use_external_data_format": dict(chunks)}
    return found


def _write(graph: _Graph, inputs: Mapping[str, Tensor], path: Path, most_bytes: int) -> bool:
    """Write a graph, and tell whether its weights stand in a file beside it."""
    import onnx

    images, texts = Dim("images"), Dim("texts")
    longest = getattr(graph.model.text_model.config, "max_position_embeddings", None)
    tokens = Dim("tokens") if longest is None else Dim("tokens", max=longest)
    shapes = {"pixel_values": {0: images}, **dict.fromkeys(("input_ids", "attention_mask"), {0: texts, 1: tokens})}
    if takes_patches(graph.model):
        patches = {0: images, 1: Dim("patches")}
        shapes |= {"pixel_values": patches, "pixel_attention_mask": patches, "spatial_shapes": {0: images}}
    given = tuple(inputs[name] for name in graph.inputs)
    with _quietly(), torch.no_grad():
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
        return False
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        apart = Path(scratch) / path.name
        program.save(apart, external_data=True)
        onnx.save_model(onnx.load(apart), path, save_as_external_data=True, location=f"{path.name}_data")
    return True


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter from warning of packages that no graph of ours needs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _quantise(path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises on the root logger to pre-process
    try:
        target = path.with_name(f"{path.stem}{QUANTISED}.onnx")
        quantize_dynamic(path, target, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    finally:
        root.setLevel(level)


@torch.no_grad()
def _compared(
    model: HolisticCLIPModel, inputs: Mapping[str, Tensor], graphs: Path, suffix: str, compare: Any
) -> dict[str, float]:
    """Run every graph on inputs, in another number than it was made with too, and compare with the model."""
    import onnxruntime

    found: dict[str, float] = {}
    few = {name: value[:1] for name, value in inputs.items()}
    for kind in GRAPHS:
        graph, session = kind(model), onnxruntime.InferenceSession(graphs / f"{kind.name}{suffix}.onnx")
        for given in (inputs, few):
            named = {name: given[name] for name in graph.inputs}
            answers = session.run(list(kind.outputs), {name: value.numpy() for name, value in named.items()})
            for name, answer, wanted in zip(kind.outputs, answers, graph(*named.values()), strict=True):
                if name.startswith("logits"):
                    if suffix:
                        continue  # they have no direction to compare
                    wanted, answer = (each / float(model.logit_scale.exp()) for each in (wanted, answer))
                key = f"{kind.name}{suffix} {name}"
                value = compare(torch.as_tensor(answer), wanted)
                found[key] = value if key not in found else compare.worst(value, found[key])
    return found


class _Measure(NamedTuple):
    """A comparison of vectors, and which of two results is the worse."""

    measure: Any
    worst: Any

    def __call__(self, found: Tensor, expected: Tensor) -> float:
        return float(self.measure(found, expected))


_furthest = _Measure(furthest, max)
_lowest_cosine = _Measure(lambda found, expected: F.cosine_similarity(found, expected, dim=-1).min(), min)


def _require_alike(cosines: Mapping[str, float]) -> None:
    for what, cosine in cosines.items():
        if not cosine >= FEWEST_COSINE:
            raise ExportError(
                f"With 8-bit weights {what} has a cosine of {cosine:.3f} to the checkpoint's; expected "
                f"{FEWEST_COSINE} or more. Nothing was kept. Export without int8."
            )


__all__ = ["ONNX_LAYOUTS", "OnnxExport", "export_onnx"]
