"""Conversations about images in LLaVA's JSON, as a LLaVA reads them and learns from their answers.

A list holds `{"image": PATH, "conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", ...}]}`. A
conversation without an image has no `image` and no `<image>`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from holistic_clip_hf.images.decoding import read_image
from holistic_clip_hf.images.files import NamedFiles, require_folder
from holistic_clip_hf.images.left_out import LeftOutLog
from holistic_clip_hf.images.records import Record, read_records
from training.downstream.clipcap_model import UNTRAINED

IMAGE = "<image>"
# Of LLaVA-1.5's template for Vicuna (https://arxiv.org/abs/2310.03744): turns of a user and an assistant.
USER, ASSISTANT = " USER: ", " ASSISTANT:"


class Conversation(NamedTuple):
    """A conversation.

    Args:
        image: Path of its image below the folder, if it has one.
        turns: Question and answer of each turn, without `<image>`.
    """

    image: str | None
    turns: list[tuple[str, str]]


def read_conversations(
    listing: Path, folder: Path, special: Iterable[str], log: LeftOutLog, *, needs_image: bool
) -> list[Conversation]:
    """Read a list; what cannot be used is left out, and noted by its number or id.

    Args:
        listing: JSON or JSON lines.
        folder: Folder of the images.
        special: Control tokens, which no text from outside may hold.
        log: Log of what is left out.
        needs_image: Leave out conversations without an image.

    Raises:
        ValueError: no such folder, not a list of records, or one without a conversation that can be used.
    """
    files, special, found = NamedFiles(require_folder(folder)), set(special) - {IMAGE}, []
    for number, record in read_records(listing):
        read = record if isinstance(record, str) else _read(record, files, special)
        if needs_image and isinstance(read, Conversation) and read.image is None:
            read = "it has no image, from which alone this stage learns"
        if isinstance(read, str):
            name = number if isinstance(record, str) else record.get("id", number)
            log.note({f"conversation {name} of {listing.name}": read})
        else:
            found.append(read)
    if not found:
        raise ValueError(
            f"{listing} has no conversation that can be used; expected records with `conversations` of human and gpt. "
            f"The first was left out because of this: {next(iter(log.reasons.values()), 'the list is empty')}."
        )
    return found


def _read(record: Record, files: NamedFiles, special: set[str]) -> Conversation | str:
    """Return a record's conversation, or why it cannot be used."""
    told = record.get("conversations")
    if not isinstance(told, list) or not told or len(told) % 2:
        return "its `conversations` are not pairs of a question and an answer"
    for place, turn in enumerate(told):
        speaker = "gpt" if place % 2 else "human"
        if not isinstance(turn, dict) or turn.get("from") != speaker or not isinstance(turn.get("value"), str):
            return f"its turn {place} is not a text of {speaker}"
    texts = [turn["value"] for turn in told]
    if token := next((each for each in special if any(each in text for text in texts)), None):
        return f"it holds the control token {token!r}"
    image, marks = record.get("image"), [text.count(IMAGE) for text in texts]
    if sum(marks) != (image is not None) or (image is not None and not marks[0]):
        return f"it has {IMAGE} {sum(marks)} times, and {'an' if image is not None else 'no'} image in its first turn"
    if image is not None:
        hit = files.find(image) if isinstance(image, str) else "its path is not a text"
        if isinstance(hit, str):
            return f"its image: {hit}"
        image = hit[0]
    texts = [text.replace(IMAGE, "").strip() for text in texts]
    return Conversation(image, list(zip(texts[::2], texts[1::2], strict=True)))


@dataclass(frozen=True)
class Reader:
    """Reading of a conversation as token ids and labels.

    Args:
        tokenizer: Tokenizer that knows `<image>`.
        num_image_tokens: P, the number of tokens that an image takes.
        max_tokens: Longest conversation; longer ones are cut.
        system: Text before the first turn.
        plain: An image and its caption alone, as LLaVA's projector is pretrained, in place of turns.
    """

    tokenizer: Any
    num_image_tokens: int
    max_tokens: int
    system: str
    plain: bool

    def __call__(self, conversation: Conversation) -> dict[str, Tensor]:
        """Return `input_ids` (L,) and `labels` (L,), in which only the answers are targets."""
        text, answers = self._text(conversation)
        read = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        start = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        labels = [
            token if any(begin <= first and last <= end for begin, end in answers) and first < last else UNTRAINED
            for token, (first, last) in zip(read["input_ids"], read["offset_mapping"], strict=True)
        ]
        ids = [*start, *read["input_ids"]][: self.max_tokens]
        return {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor([*[UNTRAINED] * len(start), *labels][: self.max_tokens]),
        }

    def _text(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of a conversation, and where its answers begin and end, each with its end token."""
        image = IMAGE * self.num_image_tokens if conversation.image is not None else ""
        if self.plain:
            # LLaVA's: the question is dropped, and a line feed ends the caption.
            answer = f"{conversation.turns[0][1]}\n"
            return f"{image}{answer}", [(len(image), len(image) + len(answer))]
        text, answers = self.system, []
        for place, (question, answer) in enumerate(conversation.turns):
            before = f"{image}\n" if place == 0 and image else ""
            text += f"{USER}{before}{question}{ASSISTANT}"
            begin = len(text)
            text += f" {answer}{self.tokenizer.eos_token}"
            answers.append((begin, len(text)))
        return text, answers


class Conversations(Dataset):
    """Conversations with the pixels of their images; the next one stands in for one that cannot be read.

    Args:
        conversations: Conversations.
        folder: Folder of their images.
        reader: Reading of them.
        processor: Processor of the tower's checkpoint.
    """

    def __init__(self, conversations: Sequence[Conversation], folder: Path, reader: Reader, processor: Any) -> None:
        self.conversations, self.folder, self.reader, self.processor = conversations, folder, reader, processor
        self.log = LeftOutLog(" The next conversation takes its place.")

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        for step in range(len(self)):
            conversation = self.conversations[(index + step) % len(self)]
            found = self._read(conversation)
            if not isinstance(found, str):
                return found
            self.log.note({f"a conversation about {conversation.image or 'no image'}": found})
        raise ValueError(
            f"None of {len(self)} conversations can be read, such as {next(iter(self.log.reasons.items()))}; expected "
            "readable images and answers within `max_tokens`. Check the list."
        )

    def _read(self, conversation: Conversation) -> dict[str, Tensor] | str:
        found = self.reader(conversation)
        if bool((found["labels"] == UNTRAINED).all()):
            return "no token of an answer is within `max_tokens`"
        if conversation.image is not None:
            try:
                image = read_image(str(self.folder / conversation.image), [self.folder])
                found["pixel_values"] = self.processor(images=[image], return_tensors="pt")["pixel_values"][0]
            except ValueError as error:  # an unreadable image, or one that the processor refuses
                return str(error)
        return found


@dataclass(frozen=True)
class Collator:
    """Collator of conversations, of which some may have no image."""

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return a batch: all (N, L), and `pixel_values` (images, 3, height, width) if there are any."""
        ids, labels, pixels = (
            [row[name] for row in rows if name in row] for name in ("input_ids", "labels", "pixel_values")
        )
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=UNTRAINED),
        }
        return batch | ({"pixel_values": torch.stack(pixels)} if pixels else {})
