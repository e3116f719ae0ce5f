# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Render a model card from the configuration, the facts and the records in its folder.

  holistic-clip card model_cards/holistic-clip-emoji
  holistic-clip card runs/photos/holistic runs/photos/clip

README.md and the pictures of the branches are written from config.json, card_facts.json and results.json. Without
facts, a card has names alone, and card_facts.json is made for you to fill in. No card is edited by hand.
"""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Command:
    """Render model cards.

    Args:
        folders: Folders of checkpoints or cards.
    """

    folders: Positional[tuple[Path, ...]]

    def __call__(self) -> None:
        """Render each card and print its path.

        Raises:
            ValueError: no folder, or one without a configuration.
        """
        from ..publishing.model_card import write_model_card

        if not self.folders:
            raise ValueError("`PATH` is missing; expected the folder of a checkpoint or of a card. Name one or more.")
        for folder in self.folders:
            print(write_model_card(folder))
