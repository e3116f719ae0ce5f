"""Imports point down only: rooms by import-linter's contracts in setup.cfg, travelling files by a reading of each.

The `*_holistic_clip.py` files travel to the Hub alone. They import torch, transformers and each other, by
`from .name import thing` on one dot, since the Hub's copier reads the text and follows nothing else.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports

PACKAGE = "holistic_clip_hf"
ROOT = Path(__file__).resolve().parents[2]

# The travelling files, each with the siblings it may import.
SIBLINGS = {
    "backbone_holistic_clip": {"configuration_holistic_clip", "vision_holistic_clip"},
    "configuration_holistic_clip": {"options_holistic_clip"},
    "loss_holistic_clip": {"options_holistic_clip", "streaming_holistic_clip"},
    "modeling_holistic_clip": {
        *("backbone_holistic_clip", "configuration_holistic_clip", "loss_holistic_clip"),
        *("text_holistic_clip", "vision_holistic_clip"),
    },
    "multivector_holistic_clip": set(),
    "options_holistic_clip": set(),
    "processing_holistic_clip": {"options_holistic_clip"},
    "streaming_holistic_clip": {"options_holistic_clip"},
    "text_holistic_clip": {"backbone_holistic_clip", "configuration_holistic_clip"},
    "towers_holistic_clip": {
        *("backbone_holistic_clip", "configuration_holistic_clip", "loss_holistic_clip"),
        *("options_holistic_clip", "text_holistic_clip", "vision_holistic_clip"),
    },
    "vision_holistic_clip": {"configuration_holistic_clip"},
}
# What travels with towers in other programs, and with encoders of sentence-transformers, but not with a checkpoint.
CARRIED_BY_OTHERS = {"multivector_holistic_clip", "towers_holistic_clip"}
# Besides the standard library. transformers' strict configurations need the decorator of huggingface_hub.
TRAVELLING_MAY_IMPORT = {"torch", "transformers", "huggingface_hub.dataclasses"}
# Inside `try: ... except ImportError:` only, where the Hub's scan does not make it a requirement.
TRAVELLING_MAY_TRY = {"ftfy"}


class Import(NamedTuple):
    """One imported thing: `module` is absolute; `name` is what `from module import name` asks for, else None."""

    module: str
    name: str | None
    dots: int
    lazy: bool
    line: int


def imports_of(path: Path, package: Path) -> list[Import]:
    """Every import in the file, relative ones made absolute."""
    folder = [PACKAGE, *path.relative_to(package).parent.parts]
    found = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, None, 0, lazy, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.extend(Import(module, alias.name, node.level, lazy, node.lineno) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child, lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(ast.parse(path.read_text(encoding="utf-8")), lazy=False)
    return found


def may_travel(module: str) -> bool:
    """Whether a module is there wherever transformers and torch are."""
    allowed = any(f"{module}.".startswith(f"{ok}.") for ok in TRAVELLING_MAY_IMPORT)
    return allowed or module.split(".")[0] in sys.stdlib_module_names


def travelling_problems(name: str, path: Path, package: Path) -> list[str]:
    """What would break a travelling file on a machine that does not have this package."""
    if name not in SIBLINGS:
        return [f"{name} is new: name its siblings in SIBLINGS"]
    problems, siblings = [], set()
    for imported in imports_of(path, package):
        where = f"{name}:{imported.line}"
        if imported.dots == 1 and imported.module.count(".") == 1:
            siblings.add(imported.module.removeprefix(f"{PACKAGE}."))
        elif imported.dots or imported.module.split(".")[0] == PACKAGE:
            problems.append(f"{where}: only `from .sibling import thing` is carried to the Hub")
        elif not may_travel(imported.module) and imported.module not in TRAVELLING_MAY_TRY:
            problems.append(f"{where} imports {imported.module}: travelling files need torch and transformers only")
    if siblings - SIBLINGS[name]:
        problems.append(f"{name} imports {sorted(siblings - SIBLINGS[name])}, which SIBLINGS does not allow")
    scanned = set(get_relative_imports(path))
    if scanned != siblings:
        problems.append(f"{name}: the Hub's textual scan sees {sorted(scanned)}, the code imports {sorted(siblings)}")
    needed = set(get_imports(path)) - sys.stdlib_module_names
    if needed - {"torch", "transformers", "huggingface_hub"}:
        problems.append(f"{name} makes every user install {sorted(needed)}")
    return problems


def violations(package: Path) -> list[str]:
    """Return every broken rule of the travelling files, as sentences."""
    files = sorted(package.glob("*_holistic_clip.py"))
    return [problem for path in files for problem in travelling_problems(path.stem, path, package)]


def test_rooms_import_downwards_only():
    ran = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout


def test_an_import_that_points_up_is_named(tmp_path):
    """The contracts are in force: a copy of the package in which the corpus imports the trainer breaks them."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / PACKAGE, copy / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", copy / "setup.cfg")
    with open(copy / PACKAGE / "corpus" / "plan.py", "a") as file:
        file.write("\n\ndef upwards():\n    from ..trainer.streams import PLACE\n\n    return PLACE\n")
    ran = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    assert (
        ran.returncode == 1
        and "holistic_clip_hf.corpus is not allowed to import holistic_clip_hf.trainer" in ran.stdout
    )


def test_travelling_files_need_nothing_else():
    assert violations(ROOT / PACKAGE) == []


def test_everything_the_model_needs_travels_with_it():
    modeling = ROOT / PACKAGE / "modeling_holistic_clip.py"
    carried = {Path(path).stem for path in get_relative_import_files(modeling)}
    assert carried == SIBLINGS.keys() - {"modeling_holistic_clip", "processing_holistic_clip"} - CARRIED_BY_OTHERS


def test_everything_a_single_tower_needs_travels_with_it():
    carried = {Path(path).stem for path in get_relative_import_files(ROOT / PACKAGE / "towers_holistic_clip.py")}
    parts = ("backbone", "configuration", "loss", "options", "streaming", "text", "vision")
    assert carried == {f"{part}_holistic_clip" for part in parts}


CLEAN = {
    "configuration_holistic_clip.py": "import math\nfrom huggingface_hub.dataclasses import strict",
    "loss_holistic_clip.py": "import torch",
    "modeling_holistic_clip.py": "from .configuration_holistic_clip import C\nfrom .loss_holistic_clip import loss",
}


def tree(folder: Path, files: dict[str, str]) -> Path:
    (folder / PACKAGE).mkdir()
    for name, text in files.items():
        (folder / PACKAGE / name).write_text(text, encoding="utf-8")
    return folder / PACKAGE


def test_a_clean_tree_has_no_violations(tmp_path):
    assert violations(tree(tmp_path, CLEAN)) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("video_holistic_clip.py", "", "video_holistic_clip is new: name its siblings"),
        ("loss_holistic_clip.py", "from . import configuration_holistic_clip", "only `from .sibling import thing`"),
        ("loss_holistic_clip.py", "from .corpus.schema import X", "only `from .sibling import thing`"),
        ("loss_holistic_clip.py", f"import {PACKAGE}", "only `from .sibling import thing`"),
        ("loss_holistic_clip.py", "from .modeling_holistic_clip import M", "which SIBLINGS does not allow"),
        ("loss_holistic_clip.py", '"""Read\nfrom .corpus import X\n"""', "textual scan sees ['corpus']"),
        ("loss_holistic_clip.py", "import numpy", "need torch and transformers only"),
        ("loss_holistic_clip.py", "from huggingface_hub import HfApi", "need torch and transformers only"),
        ("loss_holistic_clip.py", "import datasets", "makes every user install ['datasets']"),
    ],
)
def test_a_broken_rule_is_named(tmp_path, name, text, message):
    found = violations(tree(tmp_path, {**CLEAN, name: text}))
    assert any(message in problem for problem in found), found


VISIBLE_EFFECTS = f"""
import json, logging, os, sys
import torch, transformers
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel, CLIPProcessor, ProcessorMixin
from transformers import logging as hf_logging

def state():
    loggers = [logging.getLogger(), *(logging.getLogger(n) for n in sorted(logging.root.manager.loggerDict))]
    handlers = {{log.name: repr([log.handlers, log.filters]) for log in loggers if log.handlers or log.filters}}
    return {{"environment": dict(os.environ), "handlers": handlers, "verbosity": hf_logging.get_verbosity(),
            "threads": torch.get_num_threads(), "seed": torch.initial_seed()}}

before, modules = state(), set(sys.modules)
sys.stdout.write("BEFORE")
import {PACKAGE}
sys.stdout.write("AFTER")
after = state()
changed = sorted(key for key in before if before[key] != after[key])
print(json.dumps({{"changed": changed, "new": sorted(set(sys.modules) - modules)}}))
"""
HEAVY = {"datasets", "evaluate", "gradio", "pandas", "pyarrow", "torchvision", "transformers.trainer"}


def test_importing_the_package_has_no_visible_effect():
    run = subprocess.run(
        [sys.executable, "-c", VISIBLE_EFFECTS], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "BEFOREAFTER" in run.stdout, "importing the package printed something"
    result = json.loads(run.stdout.partition("AFTER")[2])
    assert result["changed"] == []
    assert HEAVY.isdisjoint(result["new"])
