"""A pointer to `holistic-clip corpus`, or to the module that builds the corpus of an example, for one release."""

import sys

from training.moved import say_where

EXAMPLES = {"emoji": "emoji", "tuxpaint": "debian", "openclipart": "debian", "fashion_mnist": "debian"}

if __name__ == "__main__":
    example = next((each for each in sys.argv[1:] if each in EXAMPLES), "")
    name = "" if EXAMPLES.get(example) == "emoji" else f" {example}"
    say_where("build_corpus", f"python -m training.{EXAMPLES[example]}{name}" if example else "holistic-clip corpus")
