"""Changes of training that the package does not have, chosen by name in a study's plan: `change: own_projections`.

Each is the package's trainer with one method of its own, for one process. A change that pays on every ground may move
into the package. The others stay here, as what was tried.

Axes: N images of a batch, H branches, M caption slots, D projection width.
"""

import copy
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.corpus.build import read_manifest
from holistic_clip_hf.evaluation.encoding import encode_texts, load_checkpoint
from holistic_clip_hf.evaluation.retrieval import captions_by_perspective
from holistic_clip_hf.modeling_holistic_clip import BranchRouter
from holistic_clip_hf.trainer.frozen_tower import CachedRows
from holistic_clip_hf.trainer.recipes import (
    Recipe,
    is_finished,
    make_trainer,
    publish_checkpoint,
    remove_states,
    require_own_run,
    train_run,
)
from holistic_clip_hf.trainer.trainer import HolisticCLIPTrainer

CATEGORY = "category"  # slot whose captions are kinds
PROJECTIONS = "own_projections.safetensors"  # beside a checkpoint's weights, which have no place for them


class Changed(HolisticCLIPTrainer):
    """Trainer with one change. `begin` is called once, before the first step."""

    numbers: ClassVar[Mapping[str, float]] = {}  # part of the plan; none of them is tuned
    needs_branches: ClassVar[bool] = True  # one for each slot
    needs_slot: ClassVar[str | None] = None

    def begin(self) -> None:
        """Prepare what the change needs before the optimizer is made."""


def cross_slot_term(branches: Tensor, texts: Tensor, scale: Tensor, mask: Tensor, ids: Tensor, *, own: bool) -> Tensor:
    """Return what captions of the other slots add to a loss whose negatives are of the same slot, a scalar.

    Where an image asks through branch m, the sum over negatives takes in the captions of all slots. Its positives, and
    the other direction, stay, so the loss grows by half the mean growth of the log-sum-exp. Captions that say the
    same as the right one are left out.

    Args:
        branches: Vectors of each slot's branch, (N, M, D), of unit length.
        texts: Vectors (N, M, D), of unit length.
        scale: Inverse temperature.
        mask: True where a caption is present, (N, M).
        ids: Numbers of the texts, (N, M), equal where texts are.
        own: Take the image's own captions of other slots as negatives too. Otherwise no text of its own is one.
    """
    logits = scale * torch.einsum("imd,jsd->imjs", branches, texts)
    same_slot = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)[:, None]
    right = (ids[:, :, None, None] == ids) & mask[:, :, None, None]
    if not own:
        right = right.any(dim=1, keepdim=True)
    usual = (mask & same_slot).expand_as(logits)
    grown = usual | (mask & ~same_slot & ~right)
    before, after = (logits.masked_fill(~of, -torch.inf).flatten(2).logsumexp(dim=-1)[mask] for of in (usual, grown))
    return (after - before).mean() / 2


class CrossSlotNegatives(Changed):
    """Branches that are held against the captions of all slots of the other images."""

    own: ClassVar[bool] = False

    def _loss_of(self, rows: list[Tensor], scalars: list[Tensor], inputs: dict[str, Any], is_training: bool) -> Tensor:
        loss = super()._loss_of(rows, scalars, inputs, is_training)
        captions = inputs["caption_mask"].bool(), inputs["caption_ids"]
        return loss + cross_slot_term(rows[0][:, self.branch_of_slot], rows[1], scalars[0], *captions, own=self.own)


class CrossSlotNegativesWithOwn(CrossSlotNegatives):
    """The same, where an image's own captions of the other slots are negatives too."""

    own = True


class EpochOrder(Sampler[int]):
    """Rows in an order that a function draws anew for each epoch.

    Args:
        draw: Function that returns an epoch's rows, given a source of what is random.
        length: Number of these.
        seed: Seed of the run.
    """

    def __init__(self, draw: Callable[[np.random.Generator], list[int]], length: int, seed: int) -> None:
        self.draw, self.length, self.seed, self.epoch = draw, length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, as the Trainer does at its beginning."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(self.draw(np.random.default_rng([self.seed, self.epoch])))


Texts = Mapping[str, Sequence[Sequence[str]]]  # of each slot, the captions of all rows


class OwnOrder(Changed):
    """Trainer whose batches are not drawn at random."""

    needs_branches = False

    def draw(self, generator: np.random.Generator) -> list[int]:
        """Return the rows of an epoch; each `per_device_train_batch_size` of them are a batch."""
        raise NotImplementedError

    def begin(self) -> None:
        assert isinstance(self.train_dataset, CachedRows)  # studies of changes have a frozen tower
        self.texts: Texts = captions_by_perspective(self.train_dataset.rows, self.slots)
        self.num_rows = len(self.train_dataset)

    def length(self) -> int:
        """Return the number of rows of an epoch."""
        return self.num_rows

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        return EpochOrder(self.draw, self.length(), self.args.seed)


def order_without_duplicates(
    captions: Sequence[frozenset[Any]], size: int, generator: np.random.Generator
) -> list[int]:
    """Return the rows of as many batches of a size as there are full ones, so that no two of a batch share a caption.

    Rows come at random, and one that fits not into this batch is the first to be tried for the next. Further rounds
    of all rows fill up, and what has found no batch by the end of the epoch waits for another.

    Raises:
        ValueError: there are not enough different captions for a batch.
    """
    waiting: deque[int] = deque()
    order: list[int] = []
    for _ in range(len(captions) // size):
        batch: list[int] = []
        seen: set[Any] = set()
        passed: list[int] = []
        rounds = 0
        while len(batch) < size:
            if not waiting:
                if rounds == 2:  # the second is of all rows
                    raise ValueError(
                        f"`per_device_train_batch_size` is {size}, and at most {len(batch)} images without a caption "
                        "in common were found; expected enough for a batch. Take smaller batches."
                    )
                waiting.extend(generator.permutation(len(captions)).tolist())
                rounds += 1
            row = waiting.popleft()
            if seen.isdisjoint(captions[row]):
                batch.append(row)
                seen |= captions[row]
            else:
                passed.append(row)
        waiting.extendleft(reversed(passed))
        order += batch
    return order


class BatchesWithoutDuplicates(OwnOrder):
    """Batches of which no two images share a caption. The same thing drawn by two artists has one name, too.

    A slot with fewer texts than a batch has images, such as one of kinds, is left out of this.
    """

    def length(self) -> int:
        size = self.args.per_device_train_batch_size
        return self.num_rows // size * size

    def draw(self, generator: np.random.Generator) -> list[int]:
        size = self.args.per_device_train_batch_size
        counted = [owned for owned in self.texts.values() if len({text for texts in owned for text in texts}) >= size]
        rows = zip(*counted, strict=True)
        captions = [frozenset((slot, text) for slot, texts in enumerate(row) for text in texts) for row in rows]
        return order_without_duplicates(captions, size, generator)


# Of a row and those that are free, the ones that go with it, best first.
Choice = Callable[[int, np.ndarray], Sequence[int]]


def order_of_groups(num_rows: int, size: int, choose: Choice, generator: np.random.Generator) -> list[int]:
    """Return all rows, each once, in groups of up to a size: a row at random, and those that are chosen for it."""
    free, order = np.ones(num_rows, dtype=bool), list[int]()
    for first in generator.permutation(num_rows).tolist():
        if free[first]:
            free[first] = False
            others = list(choose(first, np.flatnonzero(free)))[: size - 1]
            free[others] = False
            order += [first, *others]
    return order


class BatchesByCategory(OwnOrder):
    """Batches made of groups of images of one category, which only the other perspectives tell apart."""

    numbers: ClassVar[Mapping[str, float]] = {"group": 8}
    needs_slot = CATEGORY

    def draw(self, generator: np.random.Generator) -> list[int]:
        kinds = np.unique([" ".join(texts) for texts in self.texts[CATEGORY]], return_inverse=True)[1]

        def choose(row: int, free: np.ndarray) -> Sequence[int]:
            return generator.permutation(free[kinds[free] == kinds[row]]).tolist()

        return order_of_groups(self.num_rows, int(self.numbers["group"]), choose, generator)


def nearest_others(row: int, free: np.ndarray, numbers: np.ndarray, vectors: np.ndarray, count: int) -> list[int]:
    """Return free rows whose captions are most like that of a row, one of each caption and none of the row's own.

    Args:
        row: Row that has a caption.
        free: Rows to choose from.
        numbers: Number of each row's caption, -1 where it has none.
        vectors: Vectors of the captions, by their number, of unit length.
        count: Number of rows that are wanted.
    """
    likeness = vectors @ vectors[numbers[row]]
    met, found = {-1, int(numbers[row])}, list[int]()
    for other in free[np.argsort(-likeness[numbers[free]], kind="stable")].tolist():
        if len(found) < count and int(numbers[other]) not in met:
            met.add(int(numbers[other]))
            found.append(other)
    return found


class BatchesOfNeighbours(OwnOrder):
    """Batches made of groups of images whose captions in one slot, another for each group, are alike but not equal.

    What is alike the network says that training starts from, by its vectors of the captions.
    """

    numbers: ClassVar[Mapping[str, float]] = {"group": 8}

    def begin(self) -> None:
        super().begin()
        assert isinstance(self.processing_class, HolisticCLIPProcessor)
        self.known: list[tuple[np.ndarray, np.ndarray]] = []  # number of each row's caption, and vectors by number
        for owned in self.texts.values():
            number_of = {text: number for number, text in enumerate(dict.fromkeys(row[0] for row in owned if row))}
            size = self.args.per_device_eval_batch_size
            vectors = encode_texts(self.model, self.processing_class, list(number_of), batch_size=size)
            numbers = np.array([number_of[row[0]] if row else -1 for row in owned])
            self.known.append((numbers, vectors.numpy()))

    def draw(self, generator: np.random.Generator) -> list[int]:
        group = int(self.numbers["group"])

        def choose(row: int, free: np.ndarray) -> Sequence[int]:
            slots = [slot for slot in self.known if slot[0][row] >= 0]
            if not slots:
                return []
            return nearest_others(row, free, *slots[generator.integers(len(slots))], group - 1)

        return order_of_groups(self.num_rows, group, choose, generator)


class RoutedFusion(Changed):
    """Fused score that a router weighs by the text, trained with the rest; at first all branches count alike."""

    def begin(self) -> None:
        config = self.model.config
        config.fusion = "routed"
        router = BranchRouter(config.projection_dim, config.num_branches)
        self.model.branch_fusion.router = router.to(self.model.device)


def without_dropped(routing: Tensor, kept: Tensor) -> Tensor:
    """Return shares (..., H) of the branches that are kept, of sum one; where none is, all are."""
    shares = routing * (kept | ~kept.any(dim=-1, keepdim=True))
    return shares / shares.sum(dim=-1, keepdim=True)


class RoutedWithDropout(RoutedFusion):
    """The same, where each caption loses each branch at random, so that the others have to answer for it."""

    numbers: ClassVar[Mapping[str, float]] = {"dropped": 0.2}

    def begin(self) -> None:
        super().begin()
        self.generator = torch.Generator().manual_seed(self.args.seed)  # no draw of the training's own

    def _loss_of(self, rows: list[Tensor], scalars: list[Tensor], inputs: dict[str, Any], is_training: bool) -> Tensor:
        if is_training:
            drawn = torch.rand(rows[2].shape, generator=self.generator).to(rows[2].device)
            rows = [*rows[:2], without_dropped(rows[2], drawn >= self.numbers["dropped"])]
        return super()._loss_of(rows, scalars, inputs, is_training)


class OwnProjections(nn.Module):
    """Projection of each branch, in place of the one that they share, of which each begins as a copy.

    A projection W of one perspective's texts asks the same of an image: the product of W t and b is that of t and W'b.
    On the side of images it needs no name to be asked by, and fused queries are answered as ever.
    """

    def __init__(self, shared: nn.Linear, num_branches: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(copy.deepcopy(shared) for _ in range(num_branches))

    def forward(self, states: Tensor) -> Tensor:
        """Map (N, H, ..., E) to (N, H, ..., D)."""
        each = zip(self.branches, states.unbind(dim=1), strict=True)
        return torch.stack([projection(state) for projection, state in each], dim=1)


class BranchProjections(Changed):
    """Branches with a projection of their own, after linears of their own."""

    def begin(self) -> None:
        self.model.visual_projection = OwnProjections(self.model.visual_projection, self.model.config.num_branches)

    def save_result(self, folder: Path) -> None:
        """Save as inherited, with the first branch's projection in its usual place, and all of them beside it."""
        own = self.model.visual_projection
        self.model.visual_projection = own.branches[0]
        super().save_result(folder)
        self.model.visual_projection = own
        save_file(own.state_dict(), folder / PROJECTIONS)


CHANGES: dict[str, type[Changed]] = {
    "cross_slot_negatives": CrossSlotNegatives,
    "cross_slot_negatives_with_own": CrossSlotNegativesWithOwn,
    "batches_without_duplicates": BatchesWithoutDuplicates,
    "batches_by_category": BatchesByCategory,
    "batches_of_neighbours": BatchesOfNeighbours,
    "routed": RoutedFusion,
    "routed_with_dropout": RoutedWithDropout,
    "own_projections": BranchProjections,
}


def require_change(where: str, change: str | None, perspectives: Sequence[str], slots: Sequence[str]) -> None:
    """Refuse a change that a method cannot have.

    Args:
        where: Place that names it, for messages.
        change: Name of the change, or None.
        perspectives, slots: Names of the method's branches, and of its caption slots.

    Raises:
        ValueError: an unknown change, or one that needs branches or a slot that the method lacks.
    """
    if change is None:
        return
    if change not in CHANGES:
        raise ValueError(f"{where}: `change` is {change!r}; expected one of {', '.join(CHANGES)}.")
    kind, needed = CHANGES[change], None
    if kind.needs_branches and list(perspectives) != list(slots):
        needed = f"the branches {', '.join(slots)}, one for each slot, not {', '.join(perspectives)}"
    elif kind.needs_slot not in (None, *slots):
        needed = f"the slot {kind.needs_slot} beside {', '.join(slots)}"
    if needed is not None:
        raise ValueError(f"{where}: `change` is {change!r}; expected {needed}. Leave it out.")


def changed_fingerprint(fingerprint: str, change: str | None) -> str:
    """Return a hash of a run's fingerprint and its change; without a change, the fingerprint itself."""
    if change is None:
        return fingerprint
    facts = json.dumps([fingerprint, change, dict(CHANGES[change].numbers)], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def make_changed(recipe: Recipe, run: str, corpus: Path, states: Path, change: str | None) -> HolisticCLIPTrainer:
    """Return the trainer of a run with its change, if it has one."""
    trainer = make_trainer(recipe, run, corpus, states)
    if change is not None:
        trainer.__class__ = CHANGES[change]  # it adds methods alone
        assert isinstance(trainer, Changed)
        trainer.begin()
    return trainer


def train_changed(recipe: Recipe, run: str, corpus: Path, checkpoint: Path, change: str | None) -> None:
    """Train a run with its change into `checkpoint`, unless it is there. One that was killed begins anew."""
    if change is None:
        train_run(recipe, run, corpus, checkpoint)
        return
    fingerprint = changed_fingerprint(recipe.fingerprint(run, read_manifest(corpus)["fingerprint"]), change)
    if is_finished(checkpoint, fingerprint):
        return
    require_own_run(checkpoint)
    trainer = make_changed(
        recipe, run, corpus, checkpoint.with_name(f"{checkpoint.name}-states") / fingerprint, change
    )
    trainer.train()
    publish_checkpoint(trainer, checkpoint, {"fingerprint": fingerprint, "recipe": recipe.name, "run": run})
    remove_states(checkpoint)


def load_changed(checkpoint: Path) -> tuple[HolisticCLIPModel, HolisticCLIPProcessor]:
    """Load a checkpoint of a study, with the projections of its branches if it has any beside its weights."""
    model, processor = load_checkpoint(checkpoint)
    if (checkpoint / PROJECTIONS).is_file():
        changed: Any = model  # whose own projection is one for all branches
        own = OwnProjections(changed.visual_projection, model.config.num_branches)
        own.load_state_dict(load_file(checkpoint / PROJECTIONS))
        changed.visual_projection = own.to(model.device)
    return model, processor
