"""docs/performance.md: its table is that of the records, and its multiplications are PyTorch's count."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel

from holistic_clip_hf import HolisticCLIPVisionConfig, HolisticCLIPVisionModel

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
TOWERS: dict[str, dict[str, Any]] = {
    "one class token": {"num_branches": 1},
    "6 class tokens": {"num_branches": 6},
    "6 class tokens with MLPs of their own in 3 layers": {"num_branches": 6, "branched_token_mlp": True},
    "6-fold MLPs in 3 layers": {"num_branches": 6, "branch_type": "mlp"},
    "6 probes": {"num_branches": 6, "branch_type": "probe"},
}


def test_the_table_is_that_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    import _page

    assert Path(sys.modules["_page"].__file__ or "") == ROOT / "tests" / "benchmarks" / "_page.py"
    text = PAGE.read_text()
    assert text == _page.rendered(text, ROOT / "tests" / "benchmarks" / "results")


def multiplications(model: nn.Module, **options: Any) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 224, 224, device="meta"), **options)
    return counter.get_total_flops()


def test_the_multiplications_are_counted() -> None:
    told = dict(re.findall(r"^\| ([^|`]+) \| (\d\.\d{3}) \|$", PAGE.read_text(), re.MULTILINE))
    assert told.keys() == TOWERS.keys()
    sizes = {"patch_size": 16, "hidden_act": "gelu"}
    with torch.device("meta"):
        clip = multiplications(CLIPVisionModel(CLIPVisionConfig(**sizes)))
        for name, fields in TOWERS.items():
            tower = HolisticCLIPVisionModel(HolisticCLIPVisionConfig(**sizes, **fields))
            assert f"{multiplications(tower, output_patches=False) / clip:.3f}" == told[name], name
