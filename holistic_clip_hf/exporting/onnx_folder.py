# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Both towers and the model of both in ONNX, for ONNX Runtime and transformers.js.

Each graph has its weights by itself. Exporters write the weights of every graph to `model.onnx.data`, so that in one
folder the second tower's replace the first's, whose vectors are then wrong without an error. What was written is run
on pictures and texts, and compared with the checkpoint, before it takes its place.

Axes: N images, H branches, T texts, L tokens, D projection width.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import CLIPProcessor, Siglip2Processor, SiglipProcessor

from ..evaluation.fingerprints import fingerprint
from ..modeling_holistic_clip import HolisticCLIPModel
from ..processing_holistic_clip import HolisticCLIPProcessor
from ..storage import import_extra, new_folder, write_json
from .graphs import (
    DATA,
    FURTHEST,
    GRAPHS,
    LOWEST_COSINE,
    MOST_BYTES,
    TOLERANCE,
    Graph,
    Run,
    Verification,
    muted,
    require_exporter,
    stock_kind,
    takes_patches,
    write_graphs,
)
from .stock_folder import save_processor
from .verification import ExportError, ProbeImages, require_close

# By layout: the folder of the graphs.
ONNX_LAYOUTS = {"onnx": "", "transformers.js": "onnx"}
QUANTISED = "_quantized"  # as transformers.js looks for 8 bits
FEWEST_COSINE = 0.9  # of int8; less is not the model any more
REPORT = "export.json"


class OnnxExport(NamedTuple):
    """Graphs of an export, measured on images and three texts.

    Args:
        files: Names of the graphs in the folder.
        differences: The largest difference to the checkpoint, by graph and output.
        cosines: The lowest cosine of an int8 vector to the checkpoint's, by graph and output; empty without int8.
        images: Number of images that the graphs were run on.
        checkpoint: Fingerprint of the checkpoint, which an index of its vectors has too.
    """

    files: list[str]
    differences: dict[str, float]
    cosines: dict[str, float]
    images: int
    checkpoint: str


class GraphOptions(NamedTuple):
    """Form of the graphs.

    Args:
        layout: Key of `ONNX_LAYOUTS`.
        int8: Write graphs with 8-bit weights too.
        keep_full: Keep the others beside them.
        most_bytes: Size of weights beyond which they stand in a file beside the graph.
        kinds: Graphs to write.
    """

    layout: str
    int8: bool = False
    keep_full: bool = True
    most_bytes: int = MOST_BYTES
    kinds: Sequence[type[Graph]] = GRAPHS


def export_onnx(
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    output: str | Path,
    *,
    layout: str = "onnx",
    int8: bool = False,
    most_bytes: int = MOST_BYTES,
    verify_images: str | Path | None = None,
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
        verify_images: Folder of images to run the graphs on. Default: two drawn ones.

    Raises:
        ValueError: an unknown layout, or one that does not take the model's images; a folder that holds anything, or
            no image to run the graphs on.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        ExportError: what was written gives other numbers.
    """
    if layout not in ONNX_LAYOUTS:
        raise ValueError(f"`layout` is {layout!r}; expected one of {', '.join(map(repr, ONNX_LAYOUTS))}.")
    require_runtime()
    if layout == "transformers.js" and takes_patches(model):
        raise ValueError(
            f"`layout` is {layout!r} and the model takes images of any shape (NaFlex), as patches with a mask; "
            "expected one of a fixed size, since the class of that library hands over pixels alone. Take 'onnx'."
        )
    images = ProbeImages(processor, verify_images)
    with new_folder(Path(output), holds="an export") as folder:
        return write_onnx(model, processor, folder, GraphOptions(layout, int8, most_bytes=most_bytes), images)


def require_runtime() -> None:
    """Raise `ImportError` if a package that writes or runs graphs of ONNX is not installed."""
    require_exporter()
    import_extra("onnxruntime", "export")


def write_onnx(
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    folder: Path,
    options: GraphOptions,
    images: ProbeImages,
) -> OnnxExport:
    """Write graphs and what belongs to them into a folder that exists, and run them; see `export_onnx`.

    Raises:
        ExportError: what was written gives other numbers.
    """
    plain = copy.deepcopy(model).float().cpu().eval()
    graphs = folder / ONNX_LAYOUTS[options.layout]
    graphs.mkdir(exist_ok=True)
    save_graph_processor(plain, processor, folder)
    files = write_graphs(plain, processor, graphs, options.kinds, options.most_bytes)
    verification = Verification(plain, processor, images)
    # All are written before any is run: one may have replaced what another needs.
    differences = verification.compare(files, _open, FURTHEST)
    require_close(differences, TOLERANCE)
    cosines: dict[str, float] = {}
    if options.int8:
        small = {kind: path.with_name(f"{path.stem}{QUANTISED}.onnx") for kind, path in files.items()}
        for kind, path in files.items():
            _quantise(path, small[kind])
        cosines = verification.compare(small, _open, LOWEST_COSINE)
        _require_alike(cosines)
    write_json(folder / "config.json", _configuration(plain, options.layout, [*files.values()]))
    if options.int8 and not options.keep_full:
        for path in graphs.glob("*.onnx*"):
            if QUANTISED not in path.name:
                path.unlink()
    names = sorted(path.relative_to(folder).as_posix() for path in graphs.glob("*.onnx*"))
    checkpoint = fingerprint(model, processor, with_fusion=False)
    report = OnnxExport(names, differences, cosines, len(images), checkpoint)
    write_json(folder / REPORT, report._asdict())
    return report


def save_graph_processor(model: HolisticCLIPModel, processor: HolisticCLIPProcessor, folder: Path) -> None:
    """Save the stock processor that fits a model's graphs."""
    siglips = Siglip2Processor if takes_patches(model) else SiglipProcessor
    save_processor(siglips if stock_kind(model) == "siglip" else CLIPProcessor, processor, folder)


def plain_configuration(model: HolisticCLIPModel) -> dict[str, Any]:
    """Return the configuration of a model as it stands beside graphs, without code of ours or a path."""
    return {name: value for name, value in model.config.to_dict().items() if name not in ("auto_map", "_name_or_path")}


def _open(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return lambda outputs, given: session.run(list(outputs), dict(given))


def _configuration(model: HolisticCLIPModel, layout: str, graphs: Sequence[Path]) -> dict[str, Any]:
    """Return the configuration beside the graphs, which transformers.js reads by CLIP's or SigLIP's name."""
    fields = plain_configuration(model)
    if layout == "onnx":
        return fields
    kind = stock_kind(model)
    architecture = {"siglip": "SiglipModel", "clip": "CLIPModel"}[kind]
    found = {**fields, "model_type": kind, "architectures": [architecture]}
    files = {path.name: int(path.with_name(f"{path.name}{DATA}").exists()) for path in graphs}
    if any(files.values()):
        found["transformers.js_config"] = {"use_external_data_format": files}
    return found


def _quantise(path: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with muted():  # it advises on the root logger to pre-process
        quantize_dynamic(path, target, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])


def _require_alike(cosines: Mapping[str, float]) -> None:
    for what, cosine in cosines.items():
        if not cosine >= FEWEST_COSINE:
            raise ExportError(
                f"With 8-bit weights {what} has a cosine of {cosine:.3f} to the checkpoint's; expected "
                f"{FEWEST_COSINE} or more. Nothing was kept. Export without int8."
            )


__all__ = ["ONNX_LAYOUTS", "OnnxExport", "export_onnx"]
