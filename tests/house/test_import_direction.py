"""Imports point down only: the package's levels, enforced by reading every import statement.

    0  *_holistic_clip.py, the files that travel to the Hub: torch, transformers and each other
    1  pure parts that know no model: they may not import level 0 either
    2  augmentation, captioning, corpus, collator, initialization
    3  trainer, evaluation, publishing, search, visualization, demo, and the package's own `__init__`
    4  training/ and tests/, which nothing in the package may import

A module imports from lower levels and from its own. Peers on one level (the trainer renders a card, the demo draws
a picture) may use each other across sub-packages as long as no two of them use each other in a circle. An import
inside a function counts like any other. Importing `a.b` also runs `a/__init__.py`, so what that one imports when it
is run counts as well.
"""

import ast
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports

PACKAGE = "holistic_clip_hf"
ROOT = Path(__file__).resolve().parents[2]

# The travelling files, each with the siblings it may import.
SIBLINGS = {
    "configuration_holistic_clip": set(),
    "fusion_holistic_clip": {"configuration_holistic_clip", "matching_holistic_clip"},
    "layers_holistic_clip": {"configuration_holistic_clip"},
    "loss_holistic_clip": {"matching_holistic_clip", "streaming_holistic_clip"},
    "matching_holistic_clip": set(),
    "modeling_holistic_clip": {
        "configuration_holistic_clip",
        "fusion_holistic_clip",
        "loss_holistic_clip",
        "packing_holistic_clip",
        "vision_holistic_clip",
    },
    "packing_holistic_clip": set(),
    "processing_holistic_clip": set(),
    "streaming_holistic_clip": set(),
    "vision_holistic_clip": {"configuration_holistic_clip", "layers_holistic_clip"},
}
# Besides the standard library. transformers' strict configurations need the decorator of huggingface_hub.
TRAVELLING_MAY_IMPORT = {"torch", "transformers", "huggingface_hub.dataclasses"}
# Inside `try: ... except ImportError:` only, where the Hub's scan does not make it a requirement.
TRAVELLING_MAY_TRY = {"ftfy"}

# A sub-package's level holds for every module in it that has none of its own.
LEVELS = {
    **dict.fromkeys(SIBLINGS, 0),
    **dict.fromkeys(["atomic", "captioning.perspectives", "captioning.rows", "corpus.schema", "distributed"], 1),
    "captioning.store": 1,
    "images": 1,
    "captioning.bleu": 1,
    **dict.fromkeys([f"captioning.{name}" for name in ("diversity", "diversity_picture", "repairs", "similarity")], 1),
    **dict.fromkeys(["evaluation.logistic_regression", "evaluation.metrics"], 1),
    **dict.fromkeys(["evaluation.ranking", "evaluation.records"], 1),
    **dict.fromkeys(["trainer.gradient_cache", "trainer.parameter_groups"], 1),
    **dict.fromkeys(["search.filters", "search.manifest", "search.query", "search.sizes", "search.store"], 1),
    **dict.fromkeys(["augmentation", "captioning", "collator", "corpus", "initialization"], 2),
    **dict.fromkeys(["reading", "unreadable"], 2),
    **dict.fromkeys(["demo", "evaluation", "publishing", "search", "trainer", "visualization"], 3),
    "": 3,
}
ABOVE_THE_PACKAGE = {"training", "tests", "conftest"}


class Import(NamedTuple):
    """One imported thing: `module` is absolute; `name` is what `from module import name` asks for, else None."""

    module: str
    name: str | None
    dots: int
    lazy: bool
    line: int


def level_of(module: str) -> int | None:
    """The level of `evaluation.metrics` or, failing that, of `evaluation`; None if neither has one."""
    return LEVELS.get(module, LEVELS.get(module.split(".")[0]))


def modules_in(package: Path) -> dict[str, Path]:
    """Dotted name below the package → file; a sub-package stands under its own name, the package under ''."""
    files = sorted(path for path in package.rglob("*.py") if "__pycache__" not in path.parts)
    parts = [path.relative_to(package).with_suffix("").parts for path in files]
    return {".".join(p for p in part if p != "__init__"): path for part, path in zip(parts, files, strict=True)}


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


def target_of(imported: Import, modules: dict[str, Path]) -> str | None:
    """The module of ours that an import names, or None for somebody else's."""
    if imported.module != PACKAGE and not imported.module.startswith(f"{PACKAGE}."):
        return None
    module = imported.module.removeprefix(PACKAGE).strip(".")
    inner = f"{module}.{imported.name}".strip(".")
    return inner if inner in modules else module


def runs_on_import(init: str, modules: dict[str, Path], package: Path) -> int:
    """The highest level that a sub-package's `__init__` pulls in when it is run."""
    targets = [target_of(i, modules) for i in imports_of(modules[init], package) if not i.lazy]
    return max((level_of(target) or 0 for target in targets if target), default=0)


def problems_of(name: str, modules: dict[str, Path], package: Path) -> list[str]:
    """What one module imports although its level forbids it."""
    level = level_of(name)
    if level is None:
        return [f"{name} has no level: give it a level in LEVELS"]
    problems = []
    for imported in imports_of(modules[name], package):
        where = f"{name or PACKAGE}:{imported.line} (level {level})"
        if imported.module.split(".")[0] in ABOVE_THE_PACKAGE:
            problems.append(f"{where} imports {imported.module}, which is not part of the package")
        target = target_of(imported, modules)
        if target is None:
            continue
        target_level = level_of(target)
        parents = [target.rpartition(".")[0]] if "." in target else []
        run = [p for p in parents if p in modules and not f"{name}.".startswith(f"{p}.")]
        if target_level is None:
            problems.append(f"{where} imports {target}, which has no level")
        elif target_level > level or (name and target == ""):
            problems.append(f"{where} imports {target or PACKAGE} of level {target_level}: imports point down only")
        elif level == 1 and target_level == 0:
            problems.append(f"{where} imports {target}: level 1 knows no model")
        for parent in run:
            if runs_on_import(parent, modules, package) > level:
                problems.append(f"{where} imports {target}, which runs {parent}/__init__ and what is above it")
    return problems


def circle(modules: dict[str, Path], package: Path) -> list[str]:
    """A circle between peers of one level, a sub-package's modules of that level counting as one peer."""

    def peer(module: str) -> tuple[str, int | None]:
        return module.split(".")[0], level_of(module)

    graph: dict[tuple[str, int | None], set[tuple[str, int | None]]] = {}
    for name, path in modules.items():
        targets = [target_of(i, modules) for i in imports_of(path, package)]
        graph.setdefault(peer(name), set()).update(peer(t) for t in targets if t and peer(t) != peer(name))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["peers import each other in a circle: " + " → ".join(name or PACKAGE for name, _ in error.args[1])]
    return []


def may_travel(module: str) -> bool:
    """Whether a module is there wherever transformers and torch are."""
    allowed = any(f"{module}.".startswith(f"{ok}.") for ok in TRAVELLING_MAY_IMPORT)
    return allowed or module.split(".")[0] in sys.stdlib_module_names


def travelling_problems(name: str, path: Path, package: Path) -> list[str]:
    """What would break a travelling file on a machine that does not have this package."""
    if name not in SIBLINGS:
        return [f"{name} has no level: give it a level in LEVELS, and its siblings in SIBLINGS"]
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
    """Every broken rule in the package, as sentences."""
    modules = modules_in(package)
    problems = [problem for name in modules for problem in problems_of(name, modules, package)]
    for name, path in modules.items():
        if name.endswith("_holistic_clip"):
            problems += travelling_problems(name, path, package)
    return problems + circle(modules, package)


def test_the_package_keeps_its_levels():
    assert violations(ROOT / PACKAGE) == []


def test_everything_the_model_needs_travels_with_it():
    modeling = ROOT / PACKAGE / "modeling_holistic_clip.py"
    carried = {Path(path).stem for path in get_relative_import_files(modeling)}
    assert carried == SIBLINGS.keys() - {"modeling_holistic_clip", "processing_holistic_clip"}


CLEAN = {
    "__init__.py": "from .trainer import Trainer",
    "configuration_holistic_clip.py": "import math\nfrom huggingface_hub.dataclasses import strict",
    "loss_holistic_clip.py": "import torch",
    "modeling_holistic_clip.py": "from .configuration_holistic_clip import C\nfrom .loss_holistic_clip import loss",
    "collator.py": "from .corpus.schema import CAPTIONS",
    "corpus/__init__.py": "",
    "corpus/schema.py": "import datasets",
    "evaluation/__init__.py": "from .retrieval import evaluate",
    "evaluation/metrics.py": "import numpy as np",
    "evaluation/retrieval.py": "from ..modeling_holistic_clip import Model\nfrom .metrics import recall",
    "trainer.py": "from .evaluation.metrics import recall\nfrom .evaluation.retrieval import evaluate",
}


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / PACKAGE


def test_a_clean_tree_has_no_violations(tmp_path):
    assert violations(tree(tmp_path, CLEAN)) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("collator.py", "from .trainer import Trainer", "imports trainer of level 3: imports point down only"),
        ("collator.py", "def f():\n    from . import trainer", "imports trainer of level 3: imports point down only"),
        ("collator.py", f"from {PACKAGE}.trainer import T", "imports trainer of level 3: imports point down only"),
        ("collator.py", f"import {PACKAGE}.trainer", "imports trainer of level 3: imports point down only"),
        ("trainer.py", f"from {PACKAGE} import Model", f"imports {PACKAGE} of level 3: imports point down only"),
        ("corpus/schema.py", "from ..modeling_holistic_clip import M", "level 1 knows no model"),
        ("collator.py", "from .evaluation.metrics import recall", "runs evaluation/__init__ and what is above it"),
        ("search.py", "from training.train import main", "imports training.train, which is not part of the package"),
        ("novelty.py", "", "novelty has no level: give it a level"),
        ("tools/novelty.py", "", "tools.novelty has no level: give it a level"),
        ("video_holistic_clip.py", "", "video_holistic_clip has no level: give it a level"),
        ("evaluation/retrieval.py", "from ..trainer import T", "in a circle"),
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
