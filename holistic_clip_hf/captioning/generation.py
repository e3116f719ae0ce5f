# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Several prompts about the same images, answered by a model that reads the images once.

- The prompts begin alike, with the image. This prefix goes through the model once; its key-value cache is copied for
  every prompt, and only the rest of the prompt and the answer are computed.
- Not every model can go on from a cache as if it had read all at once. So the first batch is asked both ways, as is
  the first with padding, and if the answers would differ, a warning says so and every prompt is encoded whole from
  then on.
"""

import copy
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import Cache, GenerationConfig, PreTrainedModel, ProcessorMixin
from transformers.generation import GenerateDecoderOnlyOutput

from .perspectives import Perspective
from .prompts import Suffixes, encode, find_suffixes, prompt_of

logger = logging.getLogger(__name__)

# What is kept of a checkpoint's generation settings: where its texts end and what may not be in them. How tokens are
# chosen is for the perspective to say.
_KEPT_SETTINGS = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "repetition_penalty", "no_repeat_ngram_size"),
    *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
)


class _Prefix(NamedTuple):
    """What all prompts begin with: its per-token inputs (N, L), the cache after them, and how each prompt goes on."""

    inputs: Mapping[str, Tensor]
    cache: Cache
    suffixes: Suffixes


# What processors and models raise where an image is none for them, or where they cannot do what they are asked.
FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class _CannotShareError(Exception):
    """Why a model has to read an image once per prompt."""


class AnswerGenerator:
    """A model with its processor; `share_prefix` lets it read an image once for all prompts."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, *, share_prefix: bool) -> None:
        self.model = model
        self.processor = processor
        self.shares_prefix = share_prefix
        self._checked: set[bool] = set()  # batches without padding, and with
        self._suffixes: dict[tuple[str, ...], Suffixes] = {}
        kept = {name: getattr(model.generation_config, name, None) for name in _KEPT_SETTINGS}
        # `generate` fills what a call leaves open from here: temperature, beams and cache of the checkpoint's own.
        model.generation_config = GenerationConfig(**kept)

    @torch.inference_mode()
    def generate(
        self, images: Sequence[Image.Image], perspectives: Sequence[Perspective], seed: str
    ) -> list[tuple[str, bool]]:
        """Per perspective and image, in this order, the answer and whether it ended before its tokens ran out.

        Sampling starts from `seed` and the perspective: the same batch gets the same answers.
        """
        prompts = tuple(prompt_of(each) for each in perspectives)
        prefix = self._read_once(images, prompts) if self.shares_prefix and len(prompts) > 1 else None
        answers = []
        for place, perspective in enumerate(perspectives):
            inputs = self._continue(prefix, place) if prefix else self._encode(images, prompts[place])
            with _seeded([seed, perspective.name, perspective.prompt_hash], self.model.device):
                output = self._run(inputs, _settings(perspective))
            new = output.sequences[:, inputs["input_ids"].shape[1] :]
            answers += [self._read(tokens) for tokens in new.tolist()]
        return answers

    def _read(self, tokens: list[int]) -> tuple[str, bool]:
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        length = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        text = self.processor.tokenizer.decode(tokens[:length], skip_special_tokens=True)
        return text.strip(), length < len(tokens)

    def _encode(self, images: Sequence[Image.Image], prompt: str) -> Mapping[str, Tensor]:
        return encode(self.processor, images, prompt).to(self.model.device, dtype=self.model.dtype)

    def _run(self, inputs: Mapping[str, Any], settings: GenerationConfig) -> GenerateDecoderOnlyOutput:
        return self.model.generate(**inputs, generation_config=settings)

    def _first_logits(self, inputs: Mapping[str, Any]) -> Tensor:
        """(N, V): of the first new token."""
        return self._run(inputs, GenerationConfig(max_new_tokens=1, output_logits=True, **_GREEDY)).logits[0].float()

    def _read_once(self, images: Sequence[Image.Image], prompts: tuple[str, ...]) -> _Prefix | None:
        """The prefix of all prompts; `None` where each has to be encoded whole."""
        try:
            suffixes = self._find_suffixes(prompts)
            start = suffixes.cut(self._encode(images, prompts[0]))
            if start is None:
                raise _CannotShareError("what follows an image depends on it")
            is_padded = not bool(start["attention_mask"].all())
            if is_padded in self._checked:
                return self._prefill(start, suffixes)
            prefix = self._check(self._first_logits(self._encode(images, prompts[-1])), start, suffixes)
            self._checked.add(is_padded)
            return prefix
        except _CannotShareError as reason:
            self.shares_prefix = False
            logger.warning("%s reads an image anew for every prompt: %s.", type(self.model).__name__, reason)
            return None

    def _find_suffixes(self, prompts: tuple[str, ...]) -> Suffixes:
        if prompts not in self._suffixes:
            found = find_suffixes(self.processor, prompts)
            if found is None:
                raise _CannotShareError("its prompts differ before the end of the image")
            self._suffixes[prompts] = found
        return self._suffixes[prompts]

    def _check(self, expected: Tensor, start: Mapping[str, Tensor], suffixes: Suffixes) -> _Prefix:
        """The prefix, if the last prompt has the `expected` logits (N, V) when it goes on from there."""
        try:
            prefix = self._prefill(start, suffixes)
            logits = self._first_logits(self._continue(prefix, -1))
        except torch.OutOfMemoryError:
            raise
        except FAULTS as error:
            raise _CannotShareError(f"going on from a cache fails ({type(error).__name__}: {error})") from error
        deviation = float((logits - expected).square().mean().sqrt() / expected.std())
        # Rounding errors of single operations, of one epsilon each, add up over the layers; a lost image, mask or
        # position shifts logits by about their spread. The root is far from both, and not a number fails too.
        tolerance = torch.finfo(self.model.dtype).eps ** 0.5
        if not deviation <= tolerance:
            found = f"{deviation:.1e} standard deviations from those of the whole prompt, more than {tolerance:.1e}"
            raise _CannotShareError(f"going on from a cache gives logits {found}")
        return prefix

    def _prefill(self, start: Mapping[str, Tensor], suffixes: Suffixes) -> _Prefix:
        # Asked for one token, `generate` leaves the cache before it: positions, masks and the kind of cache are its
        # own business, as they are in every other pass.
        output = self._run(start, GenerationConfig(max_new_tokens=1, **_GREEDY))
        return _Prefix(start, output.past_key_values, suffixes)

    def _continue(self, prefix: _Prefix, place: int) -> dict[str, Any]:
        # A copy, because not every cache can be cropped back: a sliding window has forgotten what it slid over.
        return {**prefix.suffixes.extend(prefix.inputs, place), "past_key_values": copy.deepcopy(prefix.cache)}


_GREEDY = {"do_sample": False, "return_dict_in_generate": True}


def _settings(perspective: Perspective) -> GenerationConfig:
    sampling = {"do_sample": True, "temperature": perspective.temperature, "top_p": perspective.top_p, "top_k": 0}
    chosen = {**_GREEDY, **(sampling if perspective.temperature else {})}
    return GenerationConfig(max_new_tokens=perspective.max_new_tokens, **chosen)


@contextmanager
def _seeded(names: Sequence[str], device: torch.device) -> Iterator[None]:
    """Random numbers that depend on the names alone; the caller's own go on afterwards as if none had been drawn."""
    digest = hashlib.sha256("\n".join(names).encode()).digest()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        yield
