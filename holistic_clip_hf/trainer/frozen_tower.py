# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Training on the states of a frozen tower: probes, their head, the router and the texts learn, and no step runs the
tower.

Before the first step each image is encoded once, in each of its views, and `tower_states` keeps what the tower said.
Batches then have `tower_states` in place of `pixel_values`. The model and its checkpoints are normal ones.
"""

import copy
import math
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm
from transformers import TrainerCallback

from ..corpus.build import cache_root
from ..evaluation.encoding import Pixels, evaluation_mode
from ..evaluation.fingerprints import hash_weights, image_facts
from ..images.decoding import READING
from ..images.tables import undecoded
from ..locks import LOCK, hold_lock
from ..modeling_holistic_clip import HolisticCLIPModel
from ..stopping import DeafWorker, Stopped, StopRequest
from ..storage import require_free_space, require_own_folder
from .arguments import HolisticCLIPTrainingArguments
from .augmentation import Change
from .collator import HolisticCLIPCollator, Row
from .distributed import rank
from .tower_states import About, TowerStates, hash_images, is_states_file, key_of

# Facts of a tower's configuration that belong to its head.
_OF_HEAD = {"num_branches", "branched_head_mlp", "num_branch_layers", "branch_isolation", "patch_norm"}
SECONDS_BETWEEN_LINES = 10.0


class CachedImage(NamedTuple):
    """Image of a row, in place of its pixels: what the tower said of each of its views."""

    views: Sequence[TowerStates]
    row: int

    def states(self, epoch: int) -> Tensor | str:
        """Return the states (S, E) of the epoch's view, or the reason why the image cannot be read."""
        return self.views[epoch % len(self.views)][self.row]


class CachedRows(TorchDataset):
    """Rows of a corpus whose images are `CachedImage`.

    Args:
        rows: Rows as they are.
        views: States of all images, once for each view.
    """

    def __init__(self, rows: Dataset, views: Sequence[TowerStates]) -> None:
        self.rows = rows.remove_columns("image")
        self.views = list(views)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**self.rows[number], "image": CachedImage(self.views, number)}

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Return several rows, as `torch` asks for a batch."""
        rows = self.rows.__getitems__(numbers)
        return [{**row, "image": CachedImage(self.views, number)} for row, number in zip(rows, numbers, strict=True)]


class StatesCollator(HolisticCLIPCollator):
    """Collator of `CachedRows`, with `tower_states` (N, S, E) in place of pixels.

    It draws the captions that the collator of pixels would draw. Each epoch takes the next view.
    """

    def for_pixels(self) -> HolisticCLIPCollator:
        """Return the collator of the same images as they are before the tower."""
        return HolisticCLIPCollator(self.processor, self.slots, augmentation=self.augmentation, seed=self.seed)

    def _draw_change(self, row: Row, generator: torch.Generator) -> Change | None:
        """Return how the view of this epoch was augmented when it was encoded."""
        super()._draw_change(row, generator)  # captions are drawn from what follows
        return super()._draw_change(row, self._generator(row, self.epoch % len(row["image"].views)))

    def _read_image(self, image: CachedImage, change: Change | None) -> Tensor | str:
        return image.states(self.epoch if self.is_training else 0)

    def _read_pixels(
        self, names: Sequence[str], images: Sequence[Any], left_out: dict[str, str]
    ) -> list[Pixels | None]:
        return [None if states is None else {"tower_states": states} for states in images]

    def _pixels_of_nothing(self, row: Row) -> Pixels:
        return {"tower_states": row["image"].views[0].blank()}


class StatesToKeep(NamedTuple):
    """Set of images with the states that are kept of them: rows, and how each image is read."""

    rows: Dataset
    reader: HolisticCLIPCollator
    states: TowerStates


class FrozenTower:
    """Tower of a model without its head, frozen, and the states that it gave of the images of a training.

    Args:
        model: Model that is trained; the parameters below its head are frozen.
        collator: Collator of the training.
        args: Arguments of the training.
        precision: Precision of the training, as accelerate calls it, in which the tower runs.

    Raises:
        ValueError: a tower without probes, or whose states are not those of patches.
    """

    def __init__(
        self,
        model: HolisticCLIPModel,
        collator: StatesCollator,
        args: HolisticCLIPTrainingArguments,
        precision: str = "no",
    ) -> None:
        self.model, self.collator, self.args, self.precision = model, collator, args, precision
        self.sets: dict[str, StatesToKeep] = {}
        self.is_ready = False
        self.root = Path()
        self.hash = self._hash()
        self.shape = self._shape()

    def _hash(self) -> str:
        """Hash what decides the states: weights and configuration below the head, and how images are read."""
        tower = self.model.vision_model
        config = {name: value for name, value in tower.config.to_dict().items() if name not in _OF_HEAD}
        facts = {"tower": config, "processor": image_facts(self.collator.processor), "reading": READING}
        weights: dict[str, Tensor] = {}
        for name in tower.below_states:
            weights |= getattr(tower, name).state_dict(prefix=f"{name}.")
        return hash_weights(facts, weights)

    def _shape(self) -> tuple[int, int]:
        """Return S and E, as a blank image has them."""
        blank = self.collator.processor(images=Image.new("RGB", (1, 1)), return_tensors="pt")
        if others := sorted(blank.keys() - {"pixel_values"}):
            raise ValueError(
                f"`freeze_tower` is set, and the image processor gives {', '.join(others)} beside pixels; expected "
                "images of one size, whose states are equally many. Leave it out, or take a tower of fixed resolution."
            )
        states = self._encode(blank["pixel_values"])
        return states.shape[1], states.shape[2]

    def _encode(self, pixel_values: Tensor) -> np.ndarray:
        with evaluation_mode(self.model):
            tower = self.model.vision_model
            return tower(pixel_values=pixel_values.to(tower.device)).last_hidden_state.float().cpu().numpy()

    def require_unchanged(self) -> None:
        """Refuse a tower that has changed since the trainer was made, as by loading other weights.

        Raises:
            ValueError: the tower has changed.
        """
        if self._hash() != self.hash:
            raise ValueError(
                "The tower has other weights than the one whose states are kept; expected those that the trainer was "
                "made with. Make the trainer with the model of the checkpoint that is loaded."
            )

    def plan(self, train: Any, evaluation: Any) -> tuple[Any, Any]:
        """Return the rows of both kinds with cached images, after checking that their states are kept or can be.

        Args:
            train: Rows to train on, or None.
            evaluation: Rows to evaluate on, several by name, or None.

        Raises:
            ValueError: rows without random access, or a folder that holds other states or files.
            OSError: the disk is too small.
        """
        train = self._cached("train", train, self.args.augmented_views)
        if isinstance(evaluation, dict):
            each = enumerate(evaluation.items())
            evaluation = {name: self._cached(f"eval-{number}", rows, None) for number, (name, rows) in each}
        else:
            evaluation = self._cached("eval", evaluation, None)
        self._place()
        return train, evaluation

    def _cached(self, name: str, rows: Any, num_views: int | None) -> CachedRows | None:
        """Return rows with cached images, and list the sets of states that they need."""
        if rows is None:
            return None
        if not isinstance(rows, Dataset):
            option, kind = f"{name.partition('-')[0]}_dataset", type(rows).__name__
            raise ValueError(
                f"`{option}` is a {kind}; expected a `datasets.Dataset`, of which each row has its states, with "
                "`freeze_tower`. Give the rows themselves, or freeze by `frozen`."
            )
        pixels, images = self.collator.for_pixels(), hash_images(rows)
        views = []
        for number in range(num_views or 1):
            reader = copy.copy(pixels) if num_views else pixels.for_evaluation()
            reader.epoch = number
            about = About(
                tower=self.hash,
                images=images,
                rows=len(rows),
                shape=self.shape,
                dtype=self.args.states_dtype,
                precision=self.precision,
                view=f"seed {reader.seed}, number {number}, {reader.augmentation}" if num_views else "",
            )
            of_view = f"{name}-{number}" if num_views else name
            views.append(TowerStates(Path(of_view), about))
            self.sets[of_view] = StatesToKeep(rows, reader, views[-1])
        return CachedRows(rows, views)

    def _place(self) -> None:
        """Choose the folder of the states, and refuse one that cannot have them."""
        named, abouts = self.args.states_folder, {name: each.states.about for name, each in self.sets.items()}
        self.root = cache_root() / "states" / key_of(abouts) if named is None else Path(named)
        require_own_folder(self.root, is_states_file, holds="states of a tower")
        needed = 0
        for name, each in self.sets.items():
            each.states.folder = self.root / name
            each.states.require_same("states_folder", self.root)
            needed += sum(map(len, each.states.unfinished())) * each.states.about.bytes_of_row
        above = next(folder for folder in (self.root, *self.root.absolute().parents) if folder.is_dir())
        require_free_space(above, needed, "the states of the tower", "name a `states_folder` on another disk")

    def prepare(self, autocast: Callable[[], AbstractContextManager], *, has_bar: bool = False) -> None:
        """Fill in the states that are missing. One process of those with the same disk does, and the others wait.

        Args:
            autocast: Context of the training's precision.
            has_bar: Show a bar of progress in place of lines.

        Raises:
            ValueError: states that are not finite, or beyond what the type of number can hold.
            OSError: a full disk.
            Stopped: by a signal; what was computed stays.
        """
        if self.is_ready:
            return
        self.require_unchanged()
        if not all(each.states.is_whole for each in self.sets.values()):
            if rank() == 0:
                tqdm.write(self._told(), file=sys.stderr)
            request = StopRequest()
            with hold_lock(self.root / LOCK, wait=math.inf), request.listen(), autocast():
                self._fill(request, has_bar)
        self.is_ready = True

    def _fill(self, request: StopRequest, has_bar: bool) -> None:
        """Fill in what is missing now: another process may have been faster."""
        todo = {name: each.states.unfinished() for name, each in self.sets.items()}
        progress = _Progress(sum(map(len, chain(*todo.values()))), has_bar=has_bar)
        for name, batches in todo.items():
            with closing(self._filled(self.sets[name], batches)) as filled:
                for batch in filled:
                    progress.advance(len(batch))
                    if request.signum:
                        raise Stopped(
                            request.signum,
                            f"Stopped after {progress.done:,} of {progress.of_all:,} images, whose states are kept in "
                            f"{self.root}. Give the same command again to go on.",
                        )

    def _told(self) -> str:
        sizes = [each.states.about for each in self.sets.values()]
        rows, (states, width) = sum(about.rows for about in sizes), self.shape
        size = sum(about.num_bytes for about in sizes) / 1e6
        return (
            f"states of {rows:,} images, {states} x {width} numbers of {self.args.states_dtype} each, {size:,.1f} MB "
            f"in {self.root}"
        )

    def _filled(self, each: StatesToKeep, batches: Sequence[range]) -> Generator[range]:
        """Yield batches of a set, each encoded and written before it is given."""
        if not batches:
            return
        workers = self.args.dataloader_num_workers
        loader = DataLoader(
            undecoded(each.rows),
            batch_sampler=list(map(list, batches)),
            collate_fn=each.reader.read_images,
            num_workers=workers,
            worker_init_fn=DeafWorker(None),
            generator=torch.Generator(),  # or beginning to read would draw a number of the training's
        )
        with each.states.writer() as writer:
            for batch, images in zip(batches, loader, strict=True):
                pixels = [image["pixel_values"] for image in images if not isinstance(image, str)]
                states = iter(self._encode(torch.stack(pixels)) if pixels else ())
                writer.write(batch, [image if isinstance(image, str) else next(states) for image in images])
                yield batch


class UnchangedTower(TrainerCallback):
    """Callback that looks at a frozen tower once a checkpoint is loaded, which may be that of another."""

    def __init__(self, tower: FrozenTower) -> None:
        self.tower = tower

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tower.require_unchanged()


class _Progress:
    """Progress with the time that is left: a bar on terminals, lines in other output.

    Args:
        of_all: Number of images.
        has_bar: Show a bar.
    """

    def __init__(self, of_all: int, *, has_bar: bool) -> None:
        self.of_all, self.done = of_all, 0
        self.bar = tqdm(total=of_all, desc="states", unit=" images") if has_bar else None
        self.started = self.told = time.monotonic()

    def advance(self, count: int) -> None:
        """Tell that so many more images are encoded."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
            return
        now = time.monotonic()
        if now - self.told >= SECONDS_BETWEEN_LINES or self.done == self.of_all:
            left = tqdm.format_interval((now - self.started) * (self.of_all - self.done) / self.done)
            tqdm.write(f"states {self.done:7,} of {self.of_all:,} images, {left} left", file=sys.stderr)
            self.told = now
