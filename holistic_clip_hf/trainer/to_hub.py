# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""`push_to_hub=True`: the result of a training, once, as `holistic_clip_hf.publishing.hub.publish` publishes it."""

from pathlib import Path
from typing import Any

from ..modeling_holistic_clip import HolisticCLIPModel
from ..publishing.card_facts import CardFacts, changed_arguments
from ..publishing.hub import Publication, publish, require_publishable
from ..publishing.remote import MAIN, Destination


class ResultToHub:
    """In place of what `Trainer` does with `push_to_hub`, which is to push every checkpoint, pickles, its own card.

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
        """Nothing: what goes to the Hub is the result."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: cards are rendered from records, by `holistic_clip_hf.publishing`."""

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
        """Model and processor as `from_pretrained` takes them, by the first process; to be called on all ranks."""
        weights = self.accelerator.get_state_dict(self.model)  # shards are gathered from all ranks
        if not self.is_world_process_zero():
            return
        model = HolisticCLIPModel(self.model.config)  # FSDP2 has put a class of its own in place of the trained one's
        model.load_state_dict(weights)
        for part in (model, self.processing_class):
            part.save_pretrained(folder)

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
