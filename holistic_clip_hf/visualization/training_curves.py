# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""What a trainer logged, as curves: read from the `trainer_state.json` that lies beside a checkpoint."""

import json
from pathlib import Path

Curve = list[tuple[int, float]]

STATE_NAME = "trainer_state.json"
NO_CURVES = {"step", "epoch"}


def training_curves(path: str | Path) -> dict[str, Curve]:
    """Name → (step, value) in order of steps, from a trainer's state or the folder that holds one.

    What is said once, at the end of training, is no curve and left out.

    Raises:
        ValueError: no such file, or one without a log.

    >>> training_curves("runs/emoji/holistic")["eval_loss"]
    [(210, 3.42), (420, 3.07)]
    """
    path = Path(path)
    file = path / STATE_NAME if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"No trainer's state at {file}. Give a checkpoint trained here, or its {STATE_NAME}.")
    history = json.loads(file.read_text(encoding="utf-8")).get("log_history")
    if not history:
        raise ValueError(f"{file} holds no log. Train with `logging_steps` below the number of steps.")
    curves: dict[str, dict[int, float]] = {}
    for entry in history:
        if "train_runtime" in entry:
            continue
        for name, value in entry.items():
            if name not in NO_CURVES and isinstance(value, int | float):
                curves.setdefault(name, {})[entry["step"]] = value
    return {name: sorted(curve.items()) for name, curve in curves.items()}
