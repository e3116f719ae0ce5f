# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Models of transformers that have one of our towers inside: whether they fit, and how strangers load them."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files

from ..configuration_holistic_clip import settings_of
from ..storage import parse_json, write_json
from ..towers_holistic_clip import CODE, TOWERS, HolisticCLIPPatchConfig, HolisticConsumerConfig
from .inventory import PACKAGE_FOLDER

TOWER_TYPES = tuple(config.model_type for config, _ in TOWERS)
STRATEGY = "vision_feature_select_strategy"
# By model type of the consumer: what it does with the first state of each image.
DROPS_FIRST = ("vipllava",)
COUNTS_PATCHES = ("gemma3", "paligemma")


def require_fitting(config: PreTrainedConfig | Mapping[str, Any]) -> None:
    """Refuse a model whose reading of states does not fit the tower that it has inside.

    Args:
        config: Configuration of the model around the tower, or its dict.

    Raises:
        ValueError: no such tower; a class token is expected of a tower that gives patches alone, or patches alone of a
            tower that gives a class token.
    """
    fields = config.to_dict() if isinstance(config, PreTrainedConfig) else config
    towers = [each for _, each in settings_of({"config": fields}) if _is_tower(each)]
    if not towers:
        raise ValueError(
            f"The configuration is of model type {fields.get('model_type')!r} and has no tower of this package; "
            f"expected one of type {', '.join(map(repr, TOWER_TYPES))} inside. Make it with "
            f"`HolisticCLIPPatchModel.from_model`."
        )
    kind, strategy = fields.get("model_type"), fields.get(STRATEGY)
    for tower in towers:
        gives_token = tower.get("class_token", True)
        if tower["model_type"] != HolisticCLIPPatchConfig.model_type:
            continue
        if not gives_token and (kind in DROPS_FIRST or strategy == "default"):
            way = f", or `{STRATEGY}='full'`" if strategy else ""
            raise ValueError(
                f"`class_token` of the tower is False and a model of type {kind!r} drops the first state of each "
                f"image, which would be a patch; expected True. Set `class_token=True`{way}."
            )
        if gives_token and kind in COUNTS_PATCHES:
            raise ValueError(
                f"`class_token` of the tower is True and a model of type {kind!r} takes every state for a patch; "
                f"expected False. Make the tower with `class_token=False`."
            )


def carry_code(folder: str | Path) -> list[str]:
    """Put the code of our towers beside a saved model that has one inside; the names of the files.

    After it, people without the package load the folder with transformers' Auto classes and `trust_remote_code=True`.
    Saving the model again needs it again.

    Args:
        folder: Folder that a model's `save_pretrained` wrote, such as that of a LLaVA.

    Raises:
        ValueError: no configuration, or one that does not fit (`require_fitting`).
        FileNotFoundError: no such folder.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no `config.json`; expected a folder that `save_pretrained` wrote.")
    fields = parse_json(path.read_text(encoding="utf-8"))
    if _is_tower(fields):
        raise ValueError(
            f"{folder} holds a tower by itself, whose code stands beside it; expected a model around one. Load it "
            f"with `trust_remote_code=True` as it is."
        )
    require_fitting(fields)
    code = PACKAGE_FOLDER / f"{CODE}.py"
    files = sorted({code, *map(Path, get_relative_import_files(code))})
    for file in files:
        shutil.copyfile(file, folder / file.name)
    # A map of classes that the model has by itself stays.
    fields["auto_map"] = {**fields.get("auto_map", {}), "AutoConfig": f"{CODE}.{HolisticConsumerConfig.__name__}"}
    write_json(path, fields)
    return [file.name for file in files]


def _is_tower(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("model_type") in TOWER_TYPES
