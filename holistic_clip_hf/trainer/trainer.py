# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Trainer: `transformers.Trainer` with the multi-to-multi loss, global negatives and retrieval recall.

With `push_to_hub=True` the result of a training is published once, as `holistic_clip_hf.publishing.hub.publish` does.

Axes: N images per rank, H branches, M caption slots, D projection width.
"""

import copy
import math
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, TrainOutput

from ..checkpoint_files import write_checkpoint
from ..evaluation.encoding import score_of
from ..evaluation.retrieval import recall_by_slot
from ..images.tables import undecoded
from ..loss_holistic_clip import FREE, CaptionBatch, LossOptions, multi_to_multi_loss, route
from ..modeling_holistic_clip import HolisticCLIPModel, HolisticCLIPOutput
from ..processing_holistic_clip import HolisticCLIPProcessor
from ..publishing.hub import Publication, publish, require_publishable
from ..publishing.model_card import CardFacts, changed_arguments
from ..publishing.push import MAIN, Destination
from ..stopping import DeafWorker, Stopped
from ..storage import write_folder
from . import arguments as checks
from .arguments import HolisticCLIPTrainingArguments, is_adapted
from .callbacks import (
    BranchSimilarity,
    ClampLogitScale,
    LeftOutRows,
    LossLog,
    MovingAverage,
    StreamPlace,
    TellEpoch,
    UsableBatches,
    with_one_line,
)
from .collator import Augmentation, HolisticCLIPCollator
from .distributed import gather_rows, rank_offset
from .frozen_tower import CachedRows, FrozenTower, StatesCollator, UnchangedTower
from .gradient_cache import Embeddings, cached_backward, split_batch
from .parameter_groups import (
    decayed_names,
    freeze,
    freeze_tower,
    keep_scalars_whole,
    scale_learning_rates,
    still_modules,
)
from .resuming import SaveOnStop, begin_saving, hold_output, last_whole_checkpoint, mark_whole, require_whole
from .streams import stream_loader


class ResultToHub:
    """Replacement of what `Trainer` does with `push_to_hub`, which is to push every checkpoint, pickles, its own card.

    Whether the repository can be pushed to is asked when the trainer is made, and not after hours of training.
    """

    # The Trainer's.
    args: Any
    model: Any
    accelerator: Any
    processing_class: Any
    is_world_process_zero: Any
    hub_model_id: str | None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Ask who may push where; nothing is made before there is something to put there."""
        if self.is_world_process_zero():
            name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
            self.hub_model_id = require_publishable(self._destination(name, token, None, private)).repo_id

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing: what goes to the Hub is the result."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: cards are rendered from records, by `holistic_clip_hf.publishing`."""

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        facts: CardFacts | None = None,
    ) -> Publication | None:
        """Save the model as it is now into `output_dir`, and publish it; None on all processes but the first.

        `facts` is what the card says beside configuration and records (`results.json` in `output_dir`); by default,
        the training's settings.

        Raises:
            ValueError, VerificationError, PublishingError: as `publish` does. What was saved stays, and `publish` can
                be called on it again.
        """
        folder = Path(self.args.output_dir)
        self.save_result(folder)
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        destination = self._destination(str(self.hub_model_id), token, revision, private)
        return publish(folder, destination, facts=facts or self._facts(), message=commit_message)

    def save_result(self, folder: Path) -> None:
        """Save model and processor as `from_pretrained` takes them, by the first process. Call it on all ranks.

        They appear together once both are on disk; after an error, `folder` holds what it held.
        An adapter of PEFT is saved by itself, in the folder `adapter`, and merged into the weights.
        """
        weights = self.accelerator.get_state_dict(self.model)  # shards are gathered from all ranks
        if not self.is_world_process_zero():
            return
        trained = self.accelerator.unwrap_model(self.model)
        if is_adapted(trained):
            with write_folder(folder / ADAPTER, last="adapter_config.json", replaced="") as partial:
                trained.save_pretrained(partial)  # nothing can be merged back out
            weights = copy.deepcopy(trained).merge_and_unload().state_dict()
        model = HolisticCLIPModel(self.model.config)  # FSDP2 has put a class of its own in place of the trained one's
        model.load_state_dict(weights)
        with write_checkpoint(folder) as partial:
            for part in (model, self.processing_class):
                part.save_pretrained(partial)

    def _destination(self, name: str, token: str | None, revision: str | None, private: bool | None) -> Destination:
        return Destination(
            name,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision or MAIN,
            token=token or self.args.hub_token,
        )

    def _facts(self) -> CardFacts:
        name = Path(self.args.output_dir).absolute().name
        return CardFacts(repo_id=str(self.hub_model_id), model_name=name, training=changed_arguments(self.args))


ADAPTER = "adapter"  # folder, beside merged weights


# Entries of a batch that are for the trainer and not for the model.
ABOUT_ROWS = ("image_ids", "image_mask", "left_out", "place")


class HolisticCLIPTrainer(ResultToHub, Trainer):
    """Trainer of a `HolisticCLIPModel` on a corpus.

    Negatives are global: P processes give the loss and the gradients of one process that has the whole batch.
    Evaluation reports, besides `eval_loss`, text-to-image and image-to-text recall over the whole evaluation set,
    `eval_text_to_image_recall@5` for all slots together and `eval_<slot>_text_to_image_recall@5` for each. P processes
    give the numbers of one whose evaluation batch is P times as large. `eval_branch_similarity` is the mean cosine of
    two branches; a warning tells if they are alike after half of the training.

    Args:
        processing_class: the model's `HolisticCLIPProcessor`; it is saved with every checkpoint.
        augmentation: random changes to training images.

    Datasets are those of `datasets`, with random access or streams; a stream needs `max_steps`. Each rank decodes its
    own share in the data loader's workers; images that do not decode and captions that are blank are left out
    (`collator`), counted over all ranks in the logs, and listed in `left_out.json`. Resuming gives the same weights,
    bit for bit.

    Raises:
        ValueError: a branch that no slot would train, a slot without captions, weights in half precision, a tokenizer
            whose end token is not the model's, or one process with several GPUs.
    """

    # The loss is a mean over the batch; accumulated micro-batches are averaged by the Trainer.
    loss_is_scaled_for_ga = False
    data_collator: HolisticCLIPCollator

    def __init__(
        self,
        model: HolisticCLIPModel,
        args: HolisticCLIPTrainingArguments,
        *,
        processing_class: HolisticCLIPProcessor,
        augmentation: Augmentation | None = None,
        **kwargs: Any,
    ) -> None:
        self.slots = args.slots or list(model.config.perspectives)
        self._check_before(model, args, processing_class, kwargs)
        processing_class.limit_texts(model.text_model.config.max_position_embeddings)
        for name in ("train_dataset", "eval_dataset"):
            kwargs[name] = undecoded(kwargs.get(name))
        if not model.config.fused_weight or model.config.num_branches == 1:
            model.branch_fusion.requires_grad_(False)  # no loss would reach a router, which DDP takes for a mistake
        freeze(model, args.frozen)
        if args.freeze_tower:
            checks.require_freezable(model.config, args, augmented=augmentation is not None)
            freeze_tower(model)
        self.still = still_modules(model)
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            data_collator=(StatesCollator if args.freeze_tower else HolisticCLIPCollator)(
                processing_class,
                self.slots,
                augmentation=augmentation,
                captions_per_image=args.captions_per_image,
                sentences_per_caption=args.sentences_per_caption,
                seed=args.seed,
                takes_empty=True,
            ),
            compute_metrics=kwargs.pop("compute_metrics", self.recall_by_slot),
            **kwargs,
        )
        self.branch_of_slot = model.config.branch_of_slot(self.slots)
        self.label_names: list[str] = []
        self._add_own_callbacks(model, args)
        if self.is_fsdp_enabled:
            keep_scalars_whole(model, self.accelerator)
        self._check_after(model, args)
        datasets = (kwargs.get("train_dataset"), kwargs.get("eval_dataset"))
        self.frozen_tower = self._freeze_tower(*datasets) if args.freeze_tower else None

    def _freeze_tower(self, train: Any, evaluation: Any) -> FrozenTower:
        """Put the states of a frozen tower in place of images."""
        assert isinstance(self.data_collator, StatesCollator)
        tower = FrozenTower(self.model, self.data_collator, self.args, self.accelerator.mixed_precision)
        self.train_dataset, self.eval_dataset = tower.plan(train, evaluation)
        self.add_callback(UnchangedTower(tower))
        return tower

    def _prepare_states(self) -> None:
        if self.frozen_tower is not None:
            has_bar = not self.args.disable_tqdm and sys.stderr.isatty()
            self.frozen_tower.prepare(self.accelerator.autocast, has_bar=has_bar)

    def _check_after(self, model: HolisticCLIPModel, args: HolisticCLIPTrainingArguments) -> None:
        """Refuse what does not go with how the inherited trainer shards weights."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if args.push_to_hub:
            checks.require_mergeable(model, sharded=sharded)
        checks.require_scale(args, sharded=sharded, deepspeed=self.is_deepspeed_enabled)
        if not self.is_deepspeed_enabled:  # whose optimizer keeps weights in float32
            checks.require_precision(model)

    def _check_before(
        self,
        model: HolisticCLIPModel,
        args: HolisticCLIPTrainingArguments,
        processor: HolisticCLIPProcessor,
        given: Mapping[str, Any],
    ) -> None:
        """Refuse what cannot train, before the inherited trainer touches the model."""
        checks.require_one_device(args)
        checks.require_parts(processor, args, given)
        checks.require_slots_for_all_branches(model.config, self.slots)
        checks.require_countable(given.get("eval_dataset"), args)
        checks.require_enough_rows(given.get("train_dataset"), args)
        checks.warn_of_few_steps(given.get("train_dataset"), args)
        for name in ("train_dataset", "eval_dataset"):
            checks.require_corpus(given.get(name), self.slots, name=name)
        checks.require_end_token(model.config, processor.tokenizer)

    def _add_own_callbacks(self, model: HolisticCLIPModel, args: HolisticCLIPTrainingArguments) -> None:
        choose = model.config.matching != "aligned" or FREE in self.branch_of_slot
        self.loss_log = LossLog(model.config.perspectives if choose else [], self.slots)
        self.left_out = LeftOutRows(Path(args.output_dir))
        self.moving_average = None if args.ema_decay is None else MovingAverage(model, args.ema_decay)
        self.stream_place, self.save_on_stop = StreamPlace(), SaveOnStop()
        self.similarity, self.usable = BranchSimilarity(), UsableBatches(self.slots, args.max_steps)
        own = (ClampLogitScale(), TellEpoch(self.data_collator), self.stream_place, self.left_out, self.similarity)
        for callback in own:
            self.add_callback(callback)
        if self.moving_average is not None:
            self.add_callback(self.moving_average)
        has_bar = not args.disable_tqdm and sys.stderr.isatty()
        self.callback_handler.callbacks = with_one_line(self.callback_handler.callbacks, has_bar=has_bar)
        self.add_callback(self.save_on_stop)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train as inherited; `resume_from_checkpoint=True` takes the last checkpoint that was saved to its end.

        With `push_to_hub`, the result is published when it is there. Ctrl-C and SIGTERM save a checkpoint after the
        present step. If `save_strategy` is "no", they end the training at once, and say that nothing is saved.

        Raises:
            ValueError: a checkpoint that is not whole, or none to resume from.
            InUseError: another training writes into `output_dir`.
            Stopped: by a signal; it is a KeyboardInterrupt.
        """
        is_saving = self.args.save_strategy != SaveStrategy.NO
        with hold_output(Path(self.args.output_dir)):
            checkpoint = self._resumed(resume_from_checkpoint)
            self._prepare_states()
            with self.save_on_stop.request.listen() if is_saving else self._telling_that_nothing_is_saved():
                output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
            if self.args.push_to_hub:
                self.push_to_hub()
        return output._replace(training_loss=output.metrics.get("train_loss", output.training_loss))

    @contextmanager
    def _telling_that_nothing_is_saved(self) -> Iterator[None]:
        """Say at a stop what became of the training, where nothing is asked to be saved."""
        try:
            yield
        except KeyboardInterrupt as stop:
            signum = stop.signum if isinstance(stop, Stopped) else signal.SIGINT
            raise Stopped(
                signum,
                f"Stopped after step {self.state.global_step:,} of {self.state.max_steps:,}. Nothing of it is saved, "
                "since `save_strategy` is 'no'. Set it to 'steps' or 'epoch', to save a checkpoint when stopped.",
            ) from stop

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, evaluate and save as inherited. A training that was told to stop ends here, after all callbacks.

        Raises:
            Stopped: a signal came before, and its checkpoint is whole.
        """
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self.save_on_stop.stopped is not None:
            raise self.save_on_stop.stopped

    def _resumed(self, resume_from_checkpoint: str | bool | None) -> str | None:
        """Return the checkpoint that training goes on from, if any, and tell a stream its place."""
        if resume_from_checkpoint is True:
            last = last_whole_checkpoint(Path(self.args.output_dir))
            resume_from_checkpoint = str(checks.require_resumable(last, self.args))
        if not resume_from_checkpoint:
            return None
        require_whole(Path(resume_from_checkpoint))
        if isinstance(self.train_dataset, IterableDataset):
            self.stream_place.load(Path(resume_from_checkpoint), self.args)
        return resume_from_checkpoint

    def _run_epoch(self, **kwargs: Any) -> None:
        """Train as inherited, unless all steps are done: resuming from the last would take one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """Return the inherited one; streams are read by `streams.EndlessRows`."""
        if isinstance(self.train_dataset, IterableDataset):
            loader = stream_loader(
                self.train_dataset, self.data_collator, self.args, batch_size=self._train_batch_size
            )
        else:
            loader = super().get_train_dataloader()
        loader.worker_init_fn = DeafWorker(loader.worker_init_fn)
        return loader

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, HolisticCLIPOutput]:
        """Return the multi-to-multi loss of this rank's rows against the rows of all ranks."""
        output = self._encode(model, inputs)
        loss = self._loss_of(*_embeddings(output), inputs, model.training)
        return (loss, output) if return_outputs else loss

    def _encode(self, model: nn.Module, inputs: dict[str, Any]) -> HolisticCLIPOutput:
        if model.training:
            for module in self.still:
                module.eval()
        return model(**{name: value for name, value in inputs.items() if name not in ABOUT_ROWS})

    def _loss_of(self, rows: list[Tensor], scalars: list[Tensor], inputs: dict[str, Any], is_training: bool) -> Tensor:
        mask, ids, readable = inputs["caption_mask"], inputs["caption_ids"], inputs["image_mask"]
        branches, texts, all_masks, all_ids, *routing = map(gather_rows, (*rows[:2], mask, ids, *rows[2:]))
        self.left_out.note(inputs["left_out"])
        if is_training and not self.usable.take(all_masks, self.left_out.log.reasons):
            # On all ranks alike. Every weight has a gradient, for which DDP waits.
            self.loss_log.note_empty()
            return sum(((part.float() * 0).sum() for part in (*rows, *scalars)), start=branches.new_zeros(()))
        everyone = CaptionBatch(branches, texts, all_masks, all_ids, *routing)
        everyone.image_mask = gather_rows(readable)
        loss = multi_to_multi_loss(
            rows[0],
            rows[1],
            **self._terms(scalars),
            caption_mask=mask,
            caption_ids=ids,
            routing=rows[2] if len(rows) > 2 else None,
            image_mask=readable,
            gathered=everyone,
            offset=rank_offset(len(mask)),
        )
        if is_training:
            checks.require_finite_loss(loss.total, inputs["image_ids"], step=self.state.global_step)
            self.loss_log.note(loss, mask)
        return loss.total

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Return one backward pass; with `gradient_cache_size`, piece by piece, to the same gradients."""
        size = self.args.gradient_cache_size
        self.stream_place.note(inputs)
        if size is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        read = ("caption_mask", "caption_ids", "image_ids", "image_mask", "left_out")
        captions = {name: inputs[name] for name in read}

        def embed(piece: dict[str, Any]) -> Embeddings:
            with self.compute_loss_context_manager():
                return _embeddings(self._encode(model, piece))

        def backward(rows: list[Tensor], scalars: list[Tensor]) -> Tensor:
            with self.compute_loss_context_manager():
                loss = self._loss_of(rows, scalars, captions, is_training=True)
            loss = loss / self.current_gradient_accumulation_steps
            self.accelerator.backward(loss)
            return loss.detach()

        return cached_backward(
            list(split_batch(inputs, size)),
            embed,
            backward,
            device=self.args.device,
            no_sync=partial(self.accelerator.no_sync, model),
        )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Return embeddings as predictions, caption ids and mask as labels: recall needs them of the whole set at
        once.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = self._encode(model, inputs)
            loss = self._held_out_loss(*_embeddings(output), inputs)
        self.left_out.note(inputs["left_out"])
        if prediction_loss_only:
            return loss, None, None
        texts = output.text_embeds
        if texts is not None and output.routing is not None:
            texts = route(texts, output.routing)
        is_linear = self.accelerator.unwrap_model(model).branch_fusion.is_linear
        images = output.image_embeds if is_linear else output.branch_embeds
        return loss, (images, texts), (inputs["caption_ids"], inputs["caption_mask"])

    def _held_out_loss(self, rows: list[Tensor], scalars: list[Tensor], inputs: dict[str, Any]) -> Tensor | None:
        """Return the loss of the rows of all ranks, the same on each, as one process with all of them has it.

        A last batch is filled up with rows that have been seen, so that all ranks have equally many: these are neither
        queries nor candidates. None if no caption is left, so that the batch is left out of the mean.
        """
        counts = gather_rows(inputs["image_mask"])
        progress = self.accelerator.gradient_state
        if progress.end_of_dataloader and progress.remainder > 0:
            counts[progress.remainder :] = False
        mask, ids = inputs["caption_mask"], inputs["caption_ids"]
        branches, texts, mask, ids, *routing = (
            gather_rows(part)[counts] for part in (*rows[:2], mask, ids, *rows[2:])
        )
        self.similarity.note(branches)
        if not mask.any():
            return None
        captions: dict[str, Any] = {
            "caption_mask": mask,
            "caption_ids": ids,
            "routing": routing[0] if routing else None,
        }
        return multi_to_multi_loss(branches, texts, **self._terms(scalars), **captions).total

    def _terms(self, scalars: list[Tensor]) -> dict[str, Any]:
        """Return the arguments of the loss that are the same for all batches."""
        return {
            "logit_scale": scalars[0],
            "logit_bias": scalars[1] if len(scalars) > 1 else None,
            "options": LossOptions(**self.model.config.loss_options, chunk_size=self.args.loss_chunk_size),
            "branch_of_slot": self.branch_of_slot,
        }

    def recall_by_slot(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return recall by the fused score over the evaluation set: each slot by itself, and their mean."""
        (images, texts), (ids, mask) = prediction.predictions, prediction.label_ids
        model = self.accelerator.unwrap_model(self.model)
        score = score_of(model.branch_fusion, model.logit_scale)
        return recall_by_slot(self.slots, *map(torch.as_tensor, (images, texts, ids, mask)), score=score)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """Return every row, also where training drops the last partial batch, and nothing at random."""
        checks.require_countable(eval_dataset, self.args)
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            checks.require_corpus(eval_dataset, [], name="eval_dataset")
        drop_last, collator = self.args.dataloader_drop_last, self.data_collator
        chosen = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        if isinstance(self.eval_dataset if chosen is None else chosen, CachedRows):
            self._prepare_states()
        elif isinstance(collator, StatesCollator):
            self.data_collator = collator.for_pixels()
        self.args.dataloader_drop_last, self.data_collator = False, self.data_collator.for_evaluation()
        try:
            loader = super().get_eval_dataloader(undecoded(eval_dataset))
            loader.worker_init_fn = DeafWorker(loader.worker_init_fn)
            return loader
        finally:
            self.args.dataloader_drop_last, self.data_collator = drop_last, collator

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """Load rows as for evaluation."""
        return self.get_eval_dataloader(test_dataset)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate with the averaged weights, if there are any, and without a draw that training would have made."""
        average = self.moving_average
        averaged = nullcontext() if average is None or not average.average else average.in_place()
        with averaged, torch.random.fork_rng(devices=[]):
            output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        output.metrics.update({f"{prefix}_{name}": value for name, value in self.similarity.take().items()})
        self.left_out.save()
        return output

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of matrices and convolutions; biases, norms, the logit scale, class tokens and positions do
        not decay.
        """
        return decayed_names(model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the inherited one, with `learning_rate_multipliers`."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.args.multipliers:
            scale_learning_rates(optimizer, self.model if model is None else model, self.args.multipliers)
        return optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the weights as trained in a checkpoint to go on from, and their average beside them."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call:
            return
        self.stream_place.save(Path(output_dir or self.args.output_dir))
        if self.moving_average is not None and self.args.should_save:
            self.moving_average.save(Path(output_dir or self.args.output_dir))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save as inherited, then mark the checkpoint as whole. It may replace one of an earlier run."""
        checkpoint = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            begin_saving(checkpoint)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        if self.args.should_save and not self.args.save_only_model:
            mark_whole(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save as inherited. Older checkpoints are removed next, so all ranks have to be done with this one."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save as inherited, which writes the arguments as well: without the token."""
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.moving_average is not None:
            self.moving_average.load(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.moving_average is not None:
            self.moving_average.load(Path(self.state.best_model_checkpoint))  # it was measured, so it is the best

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the loss consists of, the mean since the last log over ranks, and the temperature."""
        if "train_loss" in logs:
            logs["train_loss"] = self.loss_log.without_empty_of_all(logs["train_loss"])
        if "loss" in logs:
            logs["loss"] = self.loss_log.without_empty(logs["loss"])
            if math.isnan(logs["loss"]):
                del logs["loss"]
            logs |= self.loss_log.take()
            logs["logit_scale"] = self.model.logit_scale.exp().item()
            logs["left_out"] = self.left_out.count()
            self.loss_log.warn_of_empty_slots()
        super().log(logs, start_time)


def _embeddings(output: HolisticCLIPOutput) -> Embeddings:
    scalars = [scalar for scalar in (output.logit_scale, output.logit_bias) if scalar is not None]
    assert output.branch_embeds is not None and output.text_embeds is not None  # a training batch has both
    rows = [output.branch_embeds, output.text_embeds]
    return rows + ([] if output.routing is None else [output.routing]), scalars
