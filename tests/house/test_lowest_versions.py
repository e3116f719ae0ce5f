"""The lowest versions that are tested are those that setup.cfg declares."""

import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def test_each_requirement_is_pinned_to_its_lowest() -> None:
    printed = subprocess.run([sys.executable, ROOT / ".ci/lowest.py"], capture_output=True, text=True, check=True)
    pins = {line.split("==")[0]: line.split("==")[1] for line in printed.stdout.splitlines()}
    assert pins["transformers"] == "5.23" and pins.keys() >= {"torch", "huggingface_hub", "safetensors", "pillow"}
    text = (ROOT / "setup.cfg").read_text()
    for name, version in pins.items():
        assert f"\n    {Requirement(f'{name}>={version}')}\n" in text
