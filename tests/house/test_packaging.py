"""What the packaging files say agrees: one version everywhere, and every dependency pinned within its bounds."""

import configparser
import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import holistic_clip_hf

ROOT = Path(__file__).resolve().parents[2]
SETUP = configparser.ConfigParser(interpolation=None)
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def requirements(text: str) -> list[Requirement]:
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [Requirement(line) for line in lines if line]


PINS = requirements((ROOT / "constraints.txt").read_text(encoding="utf-8"))
DIRECT = requirements(SETUP["options"]["install_requires"])
EXTRAS = [r for text in SETUP["options.extras_require"].values() for r in requirements(text) if not r.extras]


def test_the_version_is_the_same_everywhere():
    version = SETUP["metadata"]["version"]
    assert holistic_clip_hf.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_dependency_is_pinned_within_its_bounds():
    pins = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in PINS}
    for requirement in DIRECT + EXTRAS:
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not in constraints.txt"
        assert pin in requirement.specifier, f"{requirement.name} {pin} is outside {requirement.specifier}"


def test_pins_are_exact_and_torch_comes_first():
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in PINS)
    assert PINS[0].name == "torch"


def test_torchvision_is_nowhere():
    # A torchvision that does not fit torch makes every import of a transformers model fail.
    assert "torchvision" not in {requirement.name for requirement in PINS + DIRECT + EXTRAS}


def test_the_package_is_typed():
    assert (ROOT / "holistic_clip_hf" / "py.typed").is_file()
