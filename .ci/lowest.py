"""Prints setup.cfg's requirements as pip constraints at their lowest versions: `torch>=2.6` becomes `torch==2.6`."""

import configparser
from pathlib import Path

SETUP = Path(__file__).resolve().parent.parent / "setup.cfg"


def lowest_versions(setup: Path = SETUP) -> list[str]:
    """Return a constraint for each hard requirement."""
    config = configparser.ConfigParser()
    config.read(setup, encoding="utf-8")
    lines = config["options"]["install_requires"].split("\n")
    requirements = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    unbounded = [requirement for requirement in requirements if requirement.count(">=") != 1]
    if unbounded:
        raise SystemExit(f"setup.cfg must say from which version on it needs {', '.join(unbounded)}.")
    return [requirement.replace(">=", "==") for requirement in requirements]


if __name__ == "__main__":
    print("\n".join(lowest_versions()))
