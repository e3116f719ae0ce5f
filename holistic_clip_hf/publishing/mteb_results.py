# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Results of mteb (MIEB's image tasks) in the form in which mteb's two repositories take them.

    results/someone__holistic-clip-emoji/<commit>/<task>.json, model_meta.json, run_settings.jsonl
    holistic_clip_models.py

The first belongs into the repository of results, the second among mteb's own models, so that others get the same
numbers.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from ..evaluation.adapters import load_mteb_encoder, mteb_encoder
from ..evaluation.encoding import load_checkpoint
from ..storage import import_extra, write_text
from .model_card import CardFacts, known_facts

MODELS_FILE = "holistic_clip_models.py"
_MODELS = """from __future__ import annotations

from {package} import {loader}

from mteb.models.model_meta import ModelMeta, ScoringFunction

{name} = {meta}
"""


def write_mteb_results(
    checkpoint: str | Path, output: str | Path, tasks: Iterable[Any], *, revision: str, repo_id: str = "", **more: Any
) -> Path:
    """Evaluate a published checkpoint, and return the folder of its results.

    Tasks that have a result in `output` are not run again, so that a run that was killed goes on.

    Args:
        checkpoint: Folder of the checkpoint, with its `card_facts.json`, or its name on the Hub.
        output: Folder of the results of any number of models, as `mteb.ResultCache` keeps them.
        tasks: Tasks of mteb, such as `mteb.get_benchmark("MIEB(lite)").tasks`.
        revision: Commit of the checkpoint on the Hub, by which others load it.
        repo_id: Name of the checkpoint on the Hub. Default: as the facts of its card say.
        more: Further fields of mteb's `ModelMeta`, such as `languages=["eng-Latn"]`.

    Raises:
        ImportError: mteb is not installed.
        ValueError: no tasks; no such checkpoint, one without a name on the Hub, or whose fusion is not a dot product.
    """
    tasks = list(tasks)
    mteb = import_extra("mteb", "peers")
    facts = known_facts(Path(checkpoint))
    name = repo_id or (facts.repo_id if Path(checkpoint).is_dir() else str(checkpoint))
    if name.count("/") != 1:
        raise ValueError(f"`repo_id` is {name!r}; expected owner/name, as on the Hub. Name it.")
    if not tasks:
        raise ValueError("`tasks` is empty; expected tasks of mteb. Take those of `mteb.get_benchmark`.")
    model, processor = load_checkpoint(checkpoint, None if Path(checkpoint).is_dir() else revision)
    told = {**_meta_of(facts), "reference": f"https://huggingface.co/{name}", **more}
    encoder = mteb_encoder(model, processor, name=name, revision=revision, **told)
    cache = mteb.ResultCache(Path(output))
    mteb.evaluate(encoder, tasks, cache=cache)
    meta = encoder.mteb_model_meta
    text = _MODELS.format(
        package=load_mteb_encoder.__module__,
        loader=load_mteb_encoder.__name__,
        name="".join(each if each.isalnum() else "_" for each in name.partition("/")[2]),
        meta=meta.to_python(),
    )
    write_text(Path(output) / MODELS_FILE, text)
    return cache.get_task_result_path("task", meta).parent


def _meta_of(facts: CardFacts) -> dict[str, Any]:
    """Return what the facts of a card know of the fields of `ModelMeta`."""
    from mteb.types import Licenses

    published = [f"https://huggingface.co/datasets/{data.hub_id}" for data in facts.training_data if data.hub_id]
    return {
        "license": facts.license if facts.license in get_args(Licenses) else None,
        "adapted_from": facts.base_model or None,
        "public_training_code": facts.code_url or None,
        "public_training_data": published[0] if published else None,
    }
