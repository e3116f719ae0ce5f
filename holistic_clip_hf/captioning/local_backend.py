# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Captions by a vision-language model on this machine, in batches. No image costs the answers about the others.

- Prompts about one image begin alike, with the image. This prefix goes through the model once. Its key-value cache is
  copied for every prompt, and only the rest of the prompt and the answer are computed.
- Answers to all prompts about all images of a batch are decoded together (`decoding`). One that has ended leaves.
- Not every model can go on from a cache as if it had read all at once. So the first batch is asked both ways, as is
  the first with padding. If the answers would differ, a warning says so and every prompt is encoded whole from then
  on, or the answers to every prompt are decoded apart.
"""

import copy
import logging
import random
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    Cache,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from .captioner import Reply, Work
from .decoding import CannotJoinError, Decoder, Row, Rows, generate
from .patience import short
from .perspectives import Perspective, prompt_of, seed_of
from .unwrapping import THINKING
from .weights import version_of

# Inputs with one entry per token, by their names in transformers' `prepare_inputs_for_generation` (5.23); all others
# describe the images and are used up by the first pass over them.
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids", "labels")
PROBE_SIZE = (224, 224)  # any size would do: what follows an image does not depend on it


def encode(
    processor: ProcessorMixin, images: Sequence[Image.Image], prompt: str, template_options: Mapping[str, Any] = {}
) -> BatchFeature:
    """Return the inputs of a model that is asked the same about every image: (N, L), padded on the left.

    A model without a chat template gets the prompt as it is; its processor adds the image.

    Args:
        template_options: Variables of the chat template, such as `enable_thinking`.
    """
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    if not processor.chat_template:
        return processor(images=[[image] for image in images], text=[prompt] * len(images), **options)
    turns = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]}]
        for image in images
    ]
    fixed = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "processor_kwargs": options}
    return processor.apply_chat_template(turns, **{**template_options, **fixed})


class Suffixes(NamedTuple):
    """Continuations of prompts after all they have in common: the per-token inputs (S,) of each, S being its own."""

    each: Sequence[Mapping[str, Tensor]]

    def cut(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the inputs of the first prompt (N, L) without its suffix: the prefix, with all that describes the
        images.

        `None` if they do not end with the suffix: then the prompt reads otherwise for these images.
        """
        suffix = self.each[0]["input_ids"]
        length = len(suffix)
        if not (inputs["input_ids"][:, -length:].cpu() == suffix).all():
            return None
        return {name: value[:, :-length] if name in PER_TOKEN else value for name, value in inputs.items()}

    def extend(self, prefix: Mapping[str, Tensor], place: int) -> dict[str, Tensor]:
        """Return the per-token inputs (N, L) of the prompt at `place`, of which the prefix is in a cache already."""
        return {
            name: torch.cat([value, self.each[place][name].to(value.device).expand(len(value), -1)], dim=1)
            for name, value in prefix.items()
            if name in PER_TOKEN
        }


def find_suffixes(
    processor: ProcessorMixin, prompts: Sequence[str], template_options: Mapping[str, Any] = {}
) -> Suffixes | None:
    """Find where prompts about one image part, or `None` if that is before the end of the image."""
    rows = [encode(processor, [Image.new("RGB", PROBE_SIZE)], prompt, template_options) for prompt in prompts]
    ids = [row["input_ids"][0] for row in rows]
    length = _common_length(ids)
    images = torch.isin(ids[0], torch.tensor([each for each in processor.image_token_ids if each is not None]))
    if not images.any() or images[length:].any():
        return None
    return Suffixes([{name: row[name][0, length:] for name in PER_TOKEN if name in row} for row in rows])


def _common_length(ids: Sequence[Tensor]) -> int:
    """Count the tokens up to the first difference, and less than any has: from nothing, nothing is generated."""
    most = min(len(row) for row in ids) - 1
    differs = torch.stack([row[:most] != ids[0][:most] for row in ids]).any(dim=0)
    return int(differs.int().argmax()) if differs.any() else most


logger = logging.getLogger(__name__)

# What is kept of a checkpoint's generation settings: where its texts end and what may not be in them. How tokens are
# chosen is for the perspective to say.
_KEPT_SETTINGS = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "repetition_penalty", "no_repeat_ngram_size"),
    *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
)


class _Prefix(NamedTuple):
    """Common beginning of all prompts: its per-token inputs (N, L), the cache, and how each prompt goes on."""

    inputs: Mapping[str, Tensor]
    cache: Cache
    suffixes: Suffixes


# What processors and models raise where an image is none for them, or where they cannot do what they are asked.
FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class _Batch(NamedTuple):
    """Images with their ids, what is asked about each, and the common beginning of all prompts if it has been read."""

    images: Sequence[Image.Image]
    image_ids: Sequence[str]
    perspectives: Sequence[Perspective]
    prefix: _Prefix | None


class _CannotShareError(Exception):
    """Reason why a model has to read an image once per prompt."""


class AnswerGenerator:
    """A model with its processor; `share_prefix` lets it read an image once for all prompts.

    A batch holds the key-value cache of the prefix of each image, and a copy with each answer under way. There are no
    more copies at a time than weigh what the model does, or than one prompt needs for all images.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        share_prefix: bool,
        template_options: Mapping[str, Any] = {},
    ) -> None:
        self.model = model
        self.processor = processor
        self.template_options = template_options
        self.shares_prefix = share_prefix
        self.decodes_together = True
        self._joins = False  # until it was tried
        self._checked: set[bool] = set()  # batches without padding, and with
        self._suffixes: dict[tuple[str, ...], Suffixes] = {}
        added = processor.tokenizer.get_added_vocab()
        self._marks = {added[mark]: mark for marks in THINKING for mark in marks if mark in added}
        kept = {name: getattr(model.generation_config, name, None) for name in _KEPT_SETTINGS}
        # `generate` fills what a call leaves open from here: temperature, beams and cache of the checkpoint's own.
        model.generation_config = GenerationConfig(**kept)
        self._decoder = Decoder(model, processor.tokenizer.pad_token_id)

    @torch.inference_mode()
    def generate(
        self, images: Sequence[Image.Image], perspectives: Sequence[Perspective], image_ids: Sequence[str]
    ) -> list[tuple[str, bool]]:
        """Return, per perspective and image, in this order, the answer and whether it ended before its tokens ran out.

        What is sampled depends on the id of the image and the perspective, and not on what else is in the batch.
        """
        prompts = tuple(prompt_of(each) for each in perspectives)
        prefix = self._read_once(images, prompts) if self.shares_prefix and len(prompts) > 1 else None
        batch = _Batch(images, image_ids, perspectives, prefix)
        if self.decodes_together and len(images) * len(prompts) > 1:
            try:
                return self._answer_together(batch)
            except CannotJoinError as reason:
                self.decodes_together = False
                logger.warning("%s decodes the answers to every prompt apart: %s.", type(self.model).__name__, reason)
            except torch.OutOfMemoryError:
                if len(images) > 1:
                    raise  # for fewer images at a time
        return self._answer_apart(batch)

    def _answer_apart(self, batch: _Batch) -> list[tuple[str, bool]]:
        answers: list[tuple[str, bool]] = []
        for place, perspective in enumerate(batch.perspectives):
            inputs, rows = self._ask(batch, place)
            output = generate(self.model, inputs, rows, max_new_tokens=perspective.max_new_tokens)
            for row, tokens in zip(rows, output.sequences[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                row.tokens = tokens
            answers += map(self._read_row, rows)
        return answers

    def _answer_together(self, batch: _Batch) -> list[tuple[str, bool]]:
        if not self._joins:
            self._check_joining(batch)
            self._joins = True
        answers: dict[int, tuple[str, bool]] = {}
        waiting = deque(range(len(batch.perspectives)))
        parts: list[Rows] = []
        while waiting or parts:
            while waiting and self._decoder.has_room(parts, len(batch.images)):
                begun = self._decoder.begin(*self._ask(batch, waiting.popleft()))
                parts += self._take_ended(begun, answers)
            if parts:
                rows = self._decoder.join(parts)
                self._decoder.go_on(rows)
                parts = self._take_ended(rows, answers)
        return [answers[place] for place in range(len(answers))]

    def _take_ended(self, rows: Rows, answers: dict[int, tuple[str, bool]]) -> list[Rows]:
        """Put the answers that have ended among the others, and return the rows that go on, if any do."""
        ended = [self._decoder.has_ended(row) for row in rows.each]
        answers |= {
            row.place: self._read_row(row) for row, has_ended in zip(rows.each, ended, strict=True) if has_ended
        }
        if all(ended):
            return []
        if any(ended):
            rows.keep([place for place, has_ended in enumerate(ended) if not has_ended])
        return [rows]

    def _ask(self, batch: _Batch, place: int) -> tuple[dict[str, Any], list[Row]]:
        """Return the inputs (N, L) of the prompt at `place`, with a cache if they begin in one, and their rows."""
        perspective, prefix = batch.perspectives[place], batch.prefix
        inputs = self._continue(prefix, place) if prefix else dict(self._encode(batch.images, prompt_of(perspective)))
        opening, first = self._begun_thinking(inputs), place * len(batch.images)
        return inputs, [
            Row(first + number, perspective, random.Random(seed_of(image_id, perspective)), opening)
            for number, image_id in enumerate(batch.image_ids)
        ]

    def _check_joining(self, batch: _Batch) -> None:
        """Refuse to join rows if they go on otherwise than alone: from two tokens of one prompt and one of another."""
        trials = ((0, 2), (len(batch.perspectives) - 1, 1))
        expected = []
        for place, count in trials:
            inputs, rows = self._ask(batch, place)
            settings: dict[str, Any] = {"max_new_tokens": count + 1, "min_new_tokens": count, "output_logits": True}
            expected.append(generate(self.model, inputs, rows, **settings).logits[count])
        try:
            parts = [
                self._decoder.begin(*self._ask(batch, place), max_new_tokens=count, min_new_tokens=count)
                for place, count in trials
            ]
            joined = self._decoder.join(parts)
            joined.set_length(joined.ids.shape[1] + 1)  # padding is to be among what is tried
            logits = self._decoder.go_on(joined, max_new_tokens=1, output_logits=True).logits[0]
        except torch.OutOfMemoryError:
            raise
        except FAULTS as error:
            raise CannotJoinError(f"going on together fails ({type(error).__name__}: {error})") from error
        if deviation := self._deviation(logits, torch.cat(expected)):
            raise CannotJoinError(f"going on together gives logits {deviation}")

    def _read(self, tokens: list[int]) -> tuple[str, bool]:
        length = next((place for place, token in enumerate(tokens) if token in self._decoder.ends), len(tokens))
        # Marks of thinking say where the caption begins, and some tokenizers leave them out as special.
        runs = groupby(tokens[:length], lambda token: self._marks.get(token, ""))
        texts = [mark or self.processor.tokenizer.decode(list(run), skip_special_tokens=True) for mark, run in runs]
        return "".join(texts).strip(), length < len(tokens)

    def _read_row(self, row: Row) -> tuple[str, bool]:
        text, finished = self._read(row.tokens)
        return row.opening + text, finished

    def _begun_thinking(self, inputs: Mapping[str, Tensor]) -> str:
        """Return the mark by which the prompt makes the model begin with thinking, if it does."""
        end = self.processor.tokenizer.decode(inputs["input_ids"][0, -_LONGEST_MARK:]).rstrip()
        return next((begin for begin, _ in THINKING if end.endswith(begin)), "")

    def _encode(self, images: Sequence[Image.Image], prompt: str) -> Mapping[str, Tensor]:
        inputs = encode(self.processor, images, prompt, self.template_options)
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def _first_logits(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the logits (N, V) of the first new token."""
        return generate(self.model, inputs, max_new_tokens=1, output_logits=True).logits[0]

    def _read_once(self, images: Sequence[Image.Image], prompts: tuple[str, ...]) -> _Prefix | None:
        """Return the prefix of all prompts; `None` where each has to be encoded whole."""
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
            found = find_suffixes(self.processor, prompts, self.template_options)
            if found is None:
                raise _CannotShareError("its prompts differ before the end of the image")
            self._suffixes[prompts] = found
        return self._suffixes[prompts]

    def _check(self, expected: Tensor, start: Mapping[str, Tensor], suffixes: Suffixes) -> _Prefix:
        """Return the prefix, if the last prompt has the `expected` logits (N, V) when it goes on from there."""
        try:
            prefix = self._prefill(start, suffixes)
            logits = self._first_logits(self._continue(prefix, -1))
        except torch.OutOfMemoryError:
            raise
        except FAULTS as error:
            raise _CannotShareError(f"going on from a cache fails ({type(error).__name__}: {error})") from error
        if deviation := self._deviation(logits, expected):
            raise _CannotShareError(f"going on from a cache gives logits {deviation}")
        return prefix

    def _deviation(self, logits: Tensor, expected: Tensor) -> str:
        """Say how far logits (N, V) are from the expected ones, or nothing if rounding explains it."""
        deviation = float((logits.float() - expected.float()).square().mean().sqrt() / expected.float().std())
        # Rounding errors of single operations, of one epsilon each, add up over the layers; a lost image, mask or
        # position shifts logits by about their spread. The root is far from both, and not a number fails too.
        tolerance = torch.finfo(self.model.dtype).eps ** 0.5
        if deviation <= tolerance:
            return ""
        return f"{deviation:.1e} standard deviations from those of the whole prompt, more than {tolerance:.1e}"

    def _prefill(self, start: Mapping[str, Tensor], suffixes: Suffixes) -> _Prefix:
        # Asked for one token, `generate` leaves the cache before it: positions, masks and the kind of cache are its
        # own business, as they are in every other pass.
        output = generate(self.model, start, max_new_tokens=1)
        return _Prefix(start, output.past_key_values, suffixes)

    def _continue(self, prefix: _Prefix, place: int) -> dict[str, Any]:
        # A copy, because not every cache can be cropped back: a sliding window has forgotten what it slid over.
        return {**prefix.suffixes.extend(prefix.inputs, place), "past_key_values": copy.deepcopy(prefix.cache)}


_LONGEST_MARK = 16  # tokens, line ends included


# Images that may wait for others that are asked the same, in batches: enough to fill one while another fills up.
_BATCHES_AHEAD = 2


class LocalBackend:
    """Any decoder of `AutoModelForImageTextToText`; without a chat template, prompts go to it as they are.

    Args:
        model_name: Name on the Hub, or a folder, whose own name then is the captioner's; weights in safetensors. Of
            two folders of one name, the weights tell which answered. No code that comes with it is run.
        revision: branch, tag or commit.
        batch_size: images at a time, with all that is asked about them; halved when memory runs out.
        device: Device of the model. Default: the GPU, or the CPU without any.
        dtype: Precision of weights and activations. Default: the checkpoint's on a GPU, float32 elsewhere.
        share_prefix: read an image once for all that is asked about it, if the model can.
        chat_template_kwargs: Variables of the chat template, such as `{"enable_thinking": False}`.

    Raises:
        ValueError: transformers cannot load the model on its own, it is an encoder-decoder or cannot answer about an
            image, or `batch_size` is less than 1.

    Example: `list(LocalBackend("llava-hf/llava-interleave-qwen-0.5b-hf", batch_size=16).answer(work))`.
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
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}; expected 1 or more. Give the number of images at a time.")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model, processor = _load(model_name, revision, dtype or ("auto" if self.device.type == "cuda" else "float32"))
        self.captioner = Path(model_name).resolve().name if Path(model_name).is_dir() else model_name
        self.revision, self.weights = version_of(model_name, revision)
        options = dict(chat_template_kwargs or {})
        self.settings: Mapping[str, Any] = {"chat_template_kwargs": options} if options else {}
        self.batch_size = batch_size
        if options and not processor.chat_template:
            raise ValueError(
                f"`chat_template_kwargs` is {options}, but {self.captioner!r} has no chat template; expected none. "
                "Leave it out."
            )
        self._generator = AnswerGenerator(
            model.to(self.device), processor, share_prefix=share_prefix, template_options=options
        )
        self._require_an_answer()

    def answer(self, work: Iterable[Work]) -> Generator[Reply, None, None]:
        """Yield one reply per image and perspective; images that are asked the same go together.

        Raises:
            ValueError: a perspective has no prompt.
        """
        for group in _alike(work, self.batch_size):
            yield from self._answer_group(group)

    def _require_an_answer(self) -> None:
        """Fail here, and not in a row for every image, if any image would fail."""
        probe = Perspective("probe", "Describe this image.", max_new_tokens=1)
        try:
            self._generator.generate([Image.new("RGB", PROBE_SIZE)], [probe], [""])
        except FAULTS as error:
            raise ValueError(
                f"`model` is {self.captioner!r}, which cannot answer about an image ({type(error).__name__}: "
                f"{short(str(error))}); expected a model that is asked in a conversation, or by a text alone. Choose "
                "the instruction-tuned variant, or another model."
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
            answers = self._generator.generate(images, perspectives, [each.image_id for each in batch])
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
    """Yield groups of images that are asked the same, of `size` where the images that may wait allow it."""
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
    except (ImportError, OSError, ValueError) as error:
        if package := _missing_package(error):
            raise ValueError(
                f"`model` is {name!r}, whose processor needs {package}, which is not installed; expected a model that "
                f"works without. Install the {package} that fits torch {torch.__version__}, choose another model, or "
                "have a server run this one and give its address as `--server`."
            ) from error
        # Which models there are takes transformers a page.
        reason = short(str(error).partition("Model type should be one of")[0]).rstrip(". ")
        raise ValueError(
            f"`model` is {name!r}, which cannot be loaded ({reason}); expected a model for image-text-to-text "
            "whose weights are safetensors and whose code is in transformers. Code that comes with it is not run. "
            "Correct the name or revision, or have a server run it and ask that."
        ) from error
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"`model` is {name!r}, which is an encoder-decoder; expected a decoder, which images and prompts "
            "are put before. Choose another model, or have a server run it and ask that."
        )
    if processor.tokenizer.pad_token is None:  # what is there is not seen
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return model, processor


# As transformers says it of torchvision, timm and num2words, for one.
_NEEDS = re.compile(
    r"requires? (?:the )?`?([\w-]{1,40})`? (?:library|to be installed)|[Pp]ackage `([\w-]{1,40})` is required"
    r"|pip install `?([\w-]{1,40})"
)


def _missing_package(error: Exception) -> str:
    """Return the package that transformers asks for, or nothing."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.partition(".")[0]
    found = _NEEDS.search(" ".join(str(error)[:5_000].split()))
    if found is None:
        return str(error) if isinstance(error, ImportError) else ""
    return next(name for name in found.groups() if name).casefold()
