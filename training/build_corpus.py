"""A pointer to `holistic-clip corpus`, for one release."""

from training.moved import say_where

if __name__ == "__main__":
    say_where("build_corpus", "holistic-clip corpus")
