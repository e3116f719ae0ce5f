# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""A model as other projects' benchmarks want it: mteb (MIEB's image tasks) and sentence-transformers.

Both would compare by cosine by themselves, which divides a fused vector by its length, another one for each image, and
so ranks differently from the model. Here both compare by dot product, of which only linear fusions are capable.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from ..initialization import saved_caption_form
from ..modeling_holistic_clip import HolisticCLIPModel
from ..options_holistic_clip import write_caption
from ..storage import import_extra
from .encoding import Processor, evaluation_mode, load_checkpoint, on_device

_OF_THE_HUB = ("revision", "token")


def load_mteb_encoder(model_name: str, revision: str | None = None, device: str | None = None) -> Any:
    """Return an encoder of a checkpoint, as mteb's registry of models loads it.

    Args:
        model_name: Name of the checkpoint on the Hub.
        revision: Commit on the Hub.
        device: Device of the model. Default: that of training.

    Raises:
        ImportError: mteb is not installed.
        ValueError: no such checkpoint, or its fusion is not a dot product of two vectors.
    """
    model, processor = load_checkpoint(model_name, revision)
    moved = model if device is None else model.to(device)
    return mteb_encoder(moved, processor, name=model_name, revision=revision or "main")


def mteb_encoder(
    model: HolisticCLIPModel, processor: Processor, *, name: str, revision: str = "local", **facts: Any
) -> Any:
    """Return an encoder for `mteb.evaluate`, of this model as it is: with its fusion, on its device.

    Args:
        name: Name as `owner/name`, under which mteb files results.
        revision: Revision, under which mteb files them too.
        facts: Further fields of mteb's `ModelMeta`, such as `license`.

    Raises:
        ImportError: mteb is not installed.
        ValueError: the model's fusion is not a dot product of two vectors.

    Example: `mteb.evaluate(mteb_encoder(model, processor, name="me/mine"), mteb.get_benchmark("MIEB(lite)").tasks)`.
    """
    import_extra("mteb", "peers")
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction

    _require_linear(model)
    is_routed = model.branch_fusion.is_routed
    known: dict[str, Any] = {
        "loader": load_mteb_encoder,
        "name": name,
        "revision": revision,
        **dict.fromkeys(("release_date", "languages", "license", "public_training_code", "public_training_data")),
        "n_parameters": model.num_parameters(),
        "n_embedding_parameters": model.text_model.get_input_embeddings().weight.numel(),
        "memory_usage_mb": round(model.get_memory_footprint() / 2**20, 1),
        "max_tokens": model.text_model.config.max_position_embeddings,
        "embed_dim": model.config.projection_dim * (len(model.config.perspectives) if is_routed else 1),
        "open_weights": True,
        "framework": ["PyTorch", "Transformers", "safetensors"],
        "similarity_fn_name": ScoringFunction.DOT_PRODUCT,
        "use_instructions": False,
        "training_datasets": None,
        "modalities": ["text", "image"],
    }

    class HolisticCLIPEncoder(AbsEncoder):
        """Texts, images, or, as MIEB does it, the sum of both."""

        mteb_model_meta = ModelMeta(**{**known, **facts})

        def encode(self, inputs: Any, **kwargs: Any) -> Tensor:
            """Encode a data loader's batches, which hold lists under `text`, `image` or both: (rows, width)."""
            with evaluation_mode(model):
                found = [_embed(model, processor, batch) for batch in inputs]
            return torch.cat(found)

    return HolisticCLIPEncoder()


def sentence_transformer(checkpoint: str, **options: Any) -> Any:
    """Return a `SentenceTransformer` of a checkpoint, texts and images alike, that compares as the model does.

    `options` are its own (`device`, `revision`, `trust_remote_code` ...). A form of captions that is a prefix, such as
    `"{perspective}: {text}"`, becomes a prompt for each perspective: `encode("yellow", prompt_name="palette")`.

    Raises:
        ImportError: sentence-transformers is not installed.
        ValueError: the model's fusion is not a dot product of two vectors.
    """
    encoder = import_extra("sentence_transformers", "peers").SentenceTransformer(
        checkpoint, similarity_fn_name="dot", **_prompts_of(checkpoint, options), **options
    )
    _require_linear(encoder[0].model)
    return encoder


def multi_vector_encoder(checkpoint: str, **options: Any) -> Any:
    """Return a `MultiVectorEncoder` of a checkpoint, in which an image has one vector for each branch.

    A text has one vector, so that MaxSim is the similarity of the branch that agrees most: the score of
    `fusion="max"`, whatever the checkpoint's own fusion is. Prompts are those of `sentence_transformer`.

    Args:
        checkpoint: Folder of a checkpoint, or its name on the Hub.
        options: Keywords of `MultiVectorEncoder`, such as `device`.

    Raises:
        ImportError: sentence-transformers is not installed.
    """
    library = import_extra("sentence_transformers", "peers")
    from sentence_transformers.base.modules import Transformer

    # As a class of the Hub's, whose file is saved with the encoder, so that people without the package open it.
    last = get_class_from_dynamic_module("multivector_holistic_clip.BranchVectors", Path(__file__).parent.parent)
    texts = {"method": "get_text_features", "method_output_name": "text_embeds"}
    images = {"method": "get_image_features", "method_output_name": "branch_embeds"}
    loading = {name: options[name] for name in (*_OF_THE_HUB, "trust_remote_code") if name in options}
    towers = Transformer(
        checkpoint,
        modality_config={"text": texts, "image": images},
        module_output_name="token_embeddings",
        **{f"{part}_kwargs": dict(loading) for part in ("model", "processor", "config")},
    )
    return library.MultiVectorEncoder(modules=[towers, last()], **_prompts_of(checkpoint, options), **options)


def _prompts_of(checkpoint: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword that gives an encoder the prefix of each perspective's captions, if their form is a prefix.

    Args:
        checkpoint: Folder of a checkpoint, or its name on the Hub.
        options: Keywords of the encoder, among which prompts of one's own stay.
    """
    hub = {name: options[name] for name in _OF_THE_HUB if name in options}
    form, perspectives = saved_caption_form(checkpoint, **hub)
    if form is None or form.count("{text}") != 1 or not form.endswith("{text}") or "prompts" in options:
        return {}
    return {"prompts": {name: write_caption(form, name, "") for name in perspectives}}


def _require_linear(model: Any) -> None:
    if not model.branch_fusion.is_linear:
        raise ValueError(
            f"The model's fusion is {model.config.fusion!r}, which no two vectors stand for; their dot product would "
            "be that of the mean. Expected is centroid, mean, weighted or routed. Set `fusion`, for example "
            "`from_pretrained(..., fusion='centroid')`."
        )


def _embed(model: HolisticCLIPModel, processor: Processor, batch: dict[str, Any]) -> Tensor:
    parts = []
    if "text" in batch:
        tokens = processor(text=list(batch["text"]), return_tensors="pt", padding=True, truncation=True)
        given = {name: tokens[name].to(model.device) for name in ("input_ids", "attention_mask")}
        parts.append(model.get_text_features(**given).pooler_output)
    if "image" in batch:
        images = processor(images=list(batch["image"]), return_tensors="pt")
        parts.append(model.get_image_features(**on_device(images, model.device)).pooler_output)
    if not parts:
        raise ValueError(f"A batch has {sorted(batch)}; expected `text`, `image` or both. Choose image-text tasks.")
    return torch.stack(parts).sum(dim=0).float().cpu()
