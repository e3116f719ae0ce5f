"""A pointer to `holistic-clip evaluate`, for one release."""

from training.moved import say_where

if __name__ == "__main__":
    say_where("evaluate", "holistic-clip evaluate")
