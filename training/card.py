"""Render a model card anew: `python -m training.card model_cards/holistic-clip-emoji [FOLDER ...]`.

A folder holds the configuration, the facts (`card_facts.json`) and the records (`results.json`) of a checkpoint; its
README.md and the pictures of its branches are written from them. No card is edited by hand.
"""

import argparse
from pathlib import Path

from holistic_clip_hf.publishing.model_card import write_model_card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a checkpoint or a card")
    for folder in parser.parse_args().folders:
        print(write_model_card(folder))


if __name__ == "__main__":
    main()
