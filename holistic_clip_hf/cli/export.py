# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Export a checkpoint to other programs, verified after it is written.

  holistic-clip export runs/photos/holistic --layout clip --branch short --output short-clip
  holistic-clip export runs/photos/holistic --layout transformers.js --int8 --output browser

`clip` and `siglip` write one branch as a stock model, which plain transformers loads and vLLM, diffusers and LLaVA
take, without any code of ours. A branch that is not such a model is refused. `onnx` and `transformers.js` write both
towers and the model of both, with all branches.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

STOCK = ("clip", "siglip")


@dataclass(frozen=True)
class Command:
    """Export a checkpoint.

    Args:
        model: Folder of a checkpoint, or its name on the Hub.
        layout: Form of what is written.
        output: Folder to write, new or empty.
        branch: Name of the branch to write, with `clip` and `siglip`. Default: the only one.
        int8: Write graphs with 8-bit weights beside the others, with `onnx` and `transformers.js`.
    """

    model: Positional[str]
    layout: Literal["clip", "siglip", "onnx", "transformers.js"]
    output: Path
    branch: str | None = None
    int8: bool = False

    def __call__(self) -> None:
        """Write the folder and print how near it is to the checkpoint.

        Raises:
            ValueError: no such checkpoint, a branch that has no such form, options that do not go together, or a
                folder that holds anything.
            ExportError: what was written gives other numbers.
        """
        self._require_fitting()
        from ..evaluation.encoding import load_checkpoint

        model, processor = load_checkpoint(self.model)
        if self.layout in STOCK:
            from ..exporting import export_stock

            far = export_stock(model, processor, self.output, layout=self.layout, branch=self.branch)
            kept = self.branch or model.config.perspectives[0]
            left = [name for name in model.config.perspectives if name != kept]
            print(f"{self.output} holds the branch {kept!r} as a stock model.")
            if left:
                print(f"Left out: the branches {', '.join(left)}, and the fused vector.")
            _print_table(far, "differs from the checkpoint by")
            return
        from ..exporting.onnx_folder import export_onnx

        report = export_onnx(model, processor, self.output, layout=self.layout, int8=self.int8)
        print(f"{self.output} holds {', '.join(report.files)}.")
        _print_table(report.differences, "differs from the checkpoint by")
        _print_table(report.cosines, "has a cosine to the checkpoint's of")

    def _require_fitting(self) -> None:
        """Refuse options that the layout does not take."""
        is_stock = self.layout in STOCK
        if self.branch is not None and not is_stock:
            raise ValueError(
                f"`branch` is {self.branch!r} and `layout` {self.layout!r}, which holds all branches; expected no "
                f"name. Leave it out."
            )
        if self.int8 and is_stock:
            raise ValueError(
                f"`int8` is True and `layout` {self.layout!r}, whose weights stay as they are; expected the layout "
                f"onnx or transformers.js. Leave it out."
            )


def _print_table(numbers: dict[str, float], words: str) -> None:
    for what, number in numbers.items():
        print(f"{what:32} {words} {number:.2g}" if number < 0.1 else f"{what:32} {words} {number:.5f}")
