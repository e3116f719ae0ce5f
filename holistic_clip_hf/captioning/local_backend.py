# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Captions by a vision-language model on this machine, in batches. No image costs the answers about the others."""

import logging
from collections.abc import Generator, Iterable, Iterator
from itertools import product
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from .backend import Reply, Work
from .generation import FAULTS, AnswerGenerator
from .perspectives import Perspective
from .prompts import PROBE_SIZE, prompt_of

logger = logging.getLogger(__name__)

# Images that may wait for others that are asked the same, in batches: enough to fill one while another fills up.
_BATCHES_AHEAD = 2


class LocalBackend:
    """Any decoder of `AutoModelForImageTextToText`; without a chat template, prompts go to it as they are.

    Args:
        model_name: on the Hub, or a folder, whose own name then is the captioner's; weights in safetensors. No code
            that comes with it is run.
        revision: branch, tag or commit.
        batch_size: images at a time; halved when memory runs out.
        device: default: the GPU if there is one.
        dtype: of weights and activations; default: the checkpoint's on a GPU, float32 elsewhere.
        share_prefix: read an image once for all that is asked about it, if the model can (`generation.py`).

    Raises:
        ValueError: transformers cannot load the model on its own, it is an encoder-decoder or cannot answer about an
            image, or `batch_size` is less than 1.

    Example: `list(LocalBackend("HuggingFaceTB/SmolVLM2-2.2B-Instruct", batch_size=16).answer(work))`.
    """

    def __init__(
        self,
        model_name: str,
        *,
        revision: str | None = None,
        batch_size: int,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        share_prefix: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"Got batch_size={batch_size}; expected 1 or more. Give the number of images at a time.")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model, processor = _load(model_name, revision, dtype or ("auto" if self.device.type == "cuda" else "float32"))
        self.captioner = Path(model_name).resolve().name if Path(model_name).is_dir() else model_name
        self.revision = getattr(model.config, "_commit_hash", None) or ""
        self.batch_size = batch_size
        self._generator = AnswerGenerator(model.to(self.device), processor, share_prefix=share_prefix)
        self._require_an_answer()

    def answer(self, work: Iterable[Work]) -> Generator[Reply, None, None]:
        """One reply per image and perspective; images that are asked the same go together.

        Raises:
            ValueError: a perspective has no prompt.
        """
        for group in _alike(work, self.batch_size):
            yield from self._answer_group(group)

    def _require_an_answer(self) -> None:
        """What fails for any image has to fail here, not in a row for every image."""
        probe = Perspective("probe", "Describe this image.", max_new_tokens=1)
        try:
            self._generator.generate([Image.new("RGB", PROBE_SIZE)], [probe], seed="")
        except FAULTS as error:
            raise ValueError(
                f"Got the captioner {self.captioner!r}, which cannot answer about an image: {type(error).__name__}: "
                f"{error}. Expected a model that is asked in a conversation, or by a text alone. Choose the "
                "instruction-tuned variant, or another model."
            ) from error

    def _answer_group(self, group: list[Work]) -> Iterator[Reply]:
        while group:
            batch = group[: self.batch_size]
            answered = self._try(batch)
            if isinstance(answered, torch.OutOfMemoryError) and len(batch) > 1:
                self.batch_size = len(batch) // 2
                logger.warning("No memory for %d images at a time: %d from here on.", len(batch), self.batch_size)
                continue
            group = group[len(batch) :]
            if not isinstance(answered, Exception):
                yield from answered
            elif len(batch) > 1:
                for each in batch:
                    yield from self._answer_group([each])
            else:
                reason = " ".join(f"{type(answered).__name__}: {answered}".split())
                yield from (Reply(batch[0].image_id, each, error=reason) for each in batch[0].perspectives)

    def _try(self, batch: list[Work]) -> list[Reply] | Exception:
        images, perspectives = [each.image for each in batch], batch[0].perspectives
        try:
            answers = self._generator.generate(images, perspectives, seed="\n".join(each.image_id for each in batch))
        except FAULTS as error:
            failure = error.with_traceback(None)  # its frames hold the tensors that memory is needed for
        else:
            asked = product(perspectives, batch)
            return [
                Reply(each.image_id, perspective, text, finished)
                for (perspective, each), (text, finished) in zip(asked, answers, strict=True)
            ]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # raises where the GPU is lost for good, and no image is to blame
        return failure


def _alike(work: Iterable[Work], size: int) -> Iterator[list[Work]]:
    """Groups of images that are asked the same, of `size` where the images that may wait allow it."""
    waiting: dict[tuple[Perspective, ...], list[Work]] = {}
    for each in work:
        for perspective in each.perspectives:
            prompt_of(perspective)
        group = waiting.setdefault(tuple(each.perspectives), [])
        group.append(each)
        if len(group) == size:
            yield waiting.pop(tuple(each.perspectives))
        elif sum(map(len, waiting.values())) == _BATCHES_AHEAD * size:
            yield waiting.pop(max(waiting, key=lambda asked: len(waiting[asked])))
    yield from waiting.values()


def _load(name: str, revision: str | None, dtype: str | torch.dtype) -> tuple[PreTrainedModel, ProcessorMixin]:
    # Left unsaid, transformers would ask on the terminal whether to run the repository's code.
    options = {"revision": revision, "trust_remote_code": False}
    try:
        processor = AutoProcessor.from_pretrained(name, **options)
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, use_safetensors=True, **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Got the captioner {name!r}, which cannot be loaded: {error}. Expected a model for image-text-to-text "
            "whose weights are safetensors and whose code is in transformers: none that comes with it is run. Correct "
            "the name or revision, or have a server run it and ask that."
        ) from error
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"Got the captioner {name!r}, which is an encoder-decoder; expected a decoder, which images and prompts "
            "are put before. Choose another model, or have a server run it and ask that."
        )
    if processor.tokenizer.pad_token is None:  # what is there is not seen
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return model, processor
