# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Export a checkpoint to other programs, verified after it is written.

  holistic-clip export runs/photos/holistic --layout clip --branch short --output short-clip
  holistic-clip export runs/photos/holistic --layout transformers.js --int8 --output graphs
  holistic-clip export runs/photos/holistic --layout browser --index photos.index --output page

`clip` and `siglip` write one branch as a stock model, which plain transformers loads and vLLM, diffusers and LLaVA
take, without any code of ours. A branch that is not such a model is refused. `onnx`, `transformers.js` and `openvino`
write both towers and the model of both, with all branches. `browser` writes a page that searches an index, without a
server.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

if TYPE_CHECKING:
    from ..modeling_holistic_clip import HolisticCLIPModel
    from ..processing_holistic_clip import HolisticCLIPProcessor

STOCK, ONNX, OPENVINO, BROWSER = ("clip", "siglip"), ("onnx", "transformers.js"), ("openvino",), ("browser",)
# By option, the layouts that take it.
LAYOUTS_OF = {
    "branch": STOCK,
    "int8": ONNX + BROWSER,
    "verify_images": STOCK + ONNX + OPENVINO,
    "index": BROWSER,
    "node_modules": BROWSER,
    "half": BROWSER,
}


@dataclass(frozen=True)
class Command:
    """Export a checkpoint.

    Args:
        model: Folder of a checkpoint, or its name on the Hub.
        layout: Form of what is written.
        output: Folder to write, new or empty.
        branch: Name of the branch to write, with `clip` and `siglip`. Default: the only one.
        int8: Write graphs with 8-bit weights beside the others, with `onnx` and `transformers.js`. With `browser`, in
            their place.
        verify_images: Folder of images to run what was written on. Default: two drawn ones.
        index: Folder of the index that the page of `browser` searches, made by the same checkpoint.
        node_modules: Folder into which npm installed @huggingface/transformers, for `browser`.
        half: Write the vectors of `browser` with 16 bits, half as many bytes.
    """

    model: Positional[str]
    layout: Literal["clip", "siglip", "onnx", "transformers.js", "openvino", "browser"]
    output: Path
    branch: str | None = None
    int8: bool = False
    verify_images: Path | None = None
    index: Path | None = None
    node_modules: Path = Path("node_modules")
    half: bool = False

    def __call__(self) -> None:
        """Write the folder and print how near it is to the checkpoint.

        Raises:
            ValueError: no such checkpoint, a branch that has no such form, options that do not go together, an index
                of another checkpoint, or a folder that holds anything.
            ExportError: what was written gives other numbers.
        """
        self._require_fitting()
        from ..evaluation.encoding import load_checkpoint

        model, processor = load_checkpoint(self.model)
        write = self._stock if self.layout in STOCK else self._browser if self.layout in BROWSER else self._graphs
        write(model, processor)
        if processor.caption_form and self.layout not in BROWSER:
            print(
                "The processor that was exported writes no captions. Write a text that asks one of "
                f"{', '.join(processor.caption_perspectives)} as {processor.caption_form!r}."
            )

    def _stock(self, model: "HolisticCLIPModel", processor: "HolisticCLIPProcessor") -> None:
        from ..exporting import export_stock

        options: dict[str, Any] = {"layout": self.layout, "branch": self.branch, "verify_images": self.verify_images}
        far = export_stock(model, processor, self.output, **options)
        kept = self.branch or model.config.perspectives[0]
        left = [name for name in model.config.perspectives if name != kept]
        print(f"{self.output} holds the branch {kept!r} as a stock model.")
        if left:
            print(f"Left out: the branches {', '.join(left)}, and the fused vector.")
        _print_table(far, "differs from the checkpoint by")

    def _graphs(self, model: "HolisticCLIPModel", processor: "HolisticCLIPProcessor") -> None:
        from ..exporting.onnx_folder import export_onnx
        from ..exporting.openvino_folder import export_openvino

        if self.layout in OPENVINO:
            report = export_openvino(model, processor, self.output, verify_images=self.verify_images)
        else:
            options: dict[str, Any] = {"layout": self.layout, "int8": self.int8, "verify_images": self.verify_images}
            report = export_onnx(model, processor, self.output, **options)
        print(f"{self.output} holds {', '.join(report.files)}, run on {report.images} images.")
        _print_table(report.differences, "differs from the checkpoint by")
        _print_table(report.cosines, "has a cosine to the checkpoint's of")

    def _browser(self, model: "HolisticCLIPModel", processor: "HolisticCLIPProcessor") -> None:
        from ..exporting.browser_folder import export_page
        from ..search.store import read_index_manifest
        from .search import images_of

        assert self.index is not None  # of `_require_fitting`
        images = images_of(read_index_manifest(self.index))
        options: dict[str, Any] = {"node_modules": self.node_modules, "int8": self.int8, "half": self.half}
        report = export_page(model, processor, self.index, self.output, **options, images=images)
        print(f"{self.output} holds a page of {report.images:,} images, {report.num_bytes / 1e6:,.1f} MB.")
        for name, reason in report.without_thumbnail.items():
            print(f"without a picture: {name}: {reason}")
        _print_table(report.graphs.differences, "differs from the checkpoint by")
        _print_table(report.graphs.cosines, "has a cosine to the checkpoint's of")
        print(f"To look at it here, run: python -m http.server --bind 127.0.0.1 --directory {self.output}")

    def _require_fitting(self) -> None:
        """Refuse options that the layout does not take."""
        for field in fields(self):
            layouts, value = LAYOUTS_OF.get(field.name, (self.layout,)), getattr(self, field.name)
            if value != field.default and self.layout not in layouts:
                raise ValueError(
                    f"`{field.name}` is {value} and `layout` {self.layout}; expected it with {' or '.join(layouts)} "
                    "alone. Leave it out."
                )
        if self.layout in BROWSER and self.index is None:
            raise ValueError(
                "`index` is missing; expected the folder of an index. Make one with `holistic-clip search index`, and "
                "name it."
            )


def _print_table(numbers: dict[str, float], words: str) -> None:
    for what, number in numbers.items():
        print(f"{what:32} {words} {number:.2g}" if number < 0.1 else f"{what:32} {words} {number:.5f}")
