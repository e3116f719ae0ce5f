"""A pointer to `holistic-clip train`, for one release."""

from training.moved import say_where

if __name__ == "__main__":
    say_where("train", "holistic-clip train")
