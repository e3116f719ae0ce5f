# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Whether a checkpoint works for everybody: loaded in a fresh interpreter, elsewhere, without this package."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import stranger

# Sums over the same weights differ in the last bits, by where they lie in memory.
TOLERANCES = {"torch.float64": 1e-6, "torch.float32": 1e-5, "torch.float16": 1e-2, "torch.bfloat16": 3e-2}
TIME_LIMIT = 3600  # seconds; a model of some billion parameters loads in minutes
OFFLINE = {"HF_HUB_OFFLINE": "1"}


class VerificationError(RuntimeError):
    """A checkpoint that does not load for people without the package, or gives them other numbers."""


def verify(
    name: str | Path,
    expected: Mapping[str, Any],
    *,
    scratch: Path,
    revision: str | None = None,
    settings: Mapping[str, str] = OFFLINE,
) -> None:
    """Load a folder or a repository as a stranger would, and compare with `stranger.measure` of the original.

    `scratch` becomes the stranger's home and working directory, which must hold nothing of ours. `settings` are
    environment variables, among them a token, if one is needed.

    Raises:
        VerificationError: it does not load, its code is not the code that it carries, or a number differs.
    """
    found = _measure_elsewhere(str(name), revision, scratch, settings)
    strange = [module for module in found["modules"] if not module.startswith("transformers_modules.")]
    if strange:
        raise VerificationError(f"{name} was loaded by {', '.join(strange)} and not by the code that it carries.")
    tolerance = TOLERANCES.get(str(expected["dtype"]), TOLERANCES["torch.float32"])
    for what, before in expected.items():
        if what == "modules":
            continue
        problem = _difference(found[what], before, tolerance)
        if problem:
            raise VerificationError(
                f"{name}: `{what}` differs from the checkpoint's: {problem}. Save model and processor again, and see "
                "that both are of the same run."
            )


def _difference(found: Any, before: Any, tolerance: float) -> str | None:
    if isinstance(before, str):
        return None if found == before else f"{found} instead of {before}"
    if len(found) != len(before):
        return f"{len(found)} numbers instead of {len(before)}"
    far = [
        (new, old)
        for new, old in zip(found, before, strict=True)
        if not math.isclose(new, old, rel_tol=tolerance, abs_tol=tolerance)
    ]
    return f"{len(far)} of {len(before)} numbers, the first {far[0][0]:g} instead of {far[0][1]:g}" if far else None


def _measure_elsewhere(name: str, revision: str | None, scratch: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    elsewhere, home = scratch / "elsewhere", scratch / "home"
    elsewhere.mkdir(parents=True, exist_ok=True)
    # Python's own variables are ignored by `-I`; the Hub's client must find neither our cache nor our modules.
    environment = {**os.environ, "HF_HOME": str(home), "HF_MODULES_CACHE": str(scratch / "modules"), **settings}
    for name_of_cache in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
        environment.pop(name_of_cache, None)
    command = [sys.executable, "-I", stranger.__file__, name, *([revision] if revision else [])]
    try:
        ran = subprocess.run(
            command,
            cwd=elsewhere,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise VerificationError(f"{name} did not load within {TIME_LIMIT} seconds.") from error
    if ran.returncode != 0:
        raise VerificationError(f"{name} does not load without this package:\n{ran.stderr.strip()[-2000:]}")
    return json.loads(ran.stdout.splitlines()[-1])
