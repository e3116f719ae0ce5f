# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Graphs of both towers and of both together for OpenVINO, in 32 bits, verified after they are written.

OpenVINO itself stores weights with 16 bits and computes with what the processor does fastest, which is far less exact
than the checkpoint. Weights here have 32 bits, and so has the arithmetic of the verification, which has to be asked
for: `compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})`.
"""

import copy
import tempfile
from pathlib import Path
from typing import Any

from ..evaluation.fingerprints import fingerprint
from ..modeling_holistic_clip import HolisticCLIPModel
from ..processing_holistic_clip import HolisticCLIPProcessor
from ..storage import import_extra, new_folder, write_json
from .graphs import FURTHEST, TOLERANCE, Run, Verification, require_exporter, write_graphs
from .onnx_folder import REPORT, OnnxExport, plain_configuration, save_graph_processor
from .verification import ProbeImages, require_close

EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


def export_openvino(
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    output: str | Path,
    *,
    verify_images: str | Path | None = None,
) -> OnnxExport:
    """Write the graphs of both towers and of both together, with configuration, tokenizer and both processor files.

    Args:
        model: the model.
        processor: Processor of the model; the stock one is written.
        output: Folder to write, new or empty.
        verify_images: Folder of images to run the graphs on. Default: two drawn ones.

    Raises:
        ValueError: a folder that holds anything, or no image to run the graphs on.
        ImportError: onnx, onnxscript or openvino is not installed.
        ExportError: what was written gives other numbers.
    """
    require_exporter()
    openvino = import_extra("openvino", "openvino")
    images = ProbeImages(processor, verify_images)
    plain = copy.deepcopy(model).float().cpu().eval()
    with new_folder(Path(output), holds="an export") as folder:
        save_graph_processor(plain, processor, folder)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            written = write_graphs(plain, processor, Path(scratch))
            for path in written.values():
                # Not `convert_model`, which reports to its makers that it was called.
                converted = openvino.Core().read_model(path)
                openvino.save_model(converted, folder / f"{path.stem}.xml", compress_to_fp16=False)
        files = {kind: folder / f"{kind.name}.xml" for kind in written}
        differences = Verification(plain, processor, images).compare(files, _open, FURTHEST)
        require_close(differences, TOLERANCE)
        write_json(folder / "config.json", plain_configuration(plain))
        names = sorted(path.name for kind in files for path in folder.glob(f"{kind.name}.*"))
        report = OnnxExport(names, differences, {}, len(images), fingerprint(model, processor, with_fusion=False))
        write_json(folder / REPORT, report._asdict())
    return report


def _open(path: Path) -> Run:
    import openvino

    compiled: Any = openvino.Core().compile_model(path, "CPU", EXACT)

    def run(outputs: Any, given: Any) -> Any:
        found = compiled(given)
        return [found[name] for name in outputs]

    return run


__all__ = ["export_openvino"]
