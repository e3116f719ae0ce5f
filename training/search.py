"""A pointer to `holistic-clip search`, for one release."""

from training.moved import say_where

if __name__ == "__main__":
    say_where("search", "holistic-clip search")
