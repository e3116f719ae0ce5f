"""A pointer to `holistic-clip publish`, for one release."""

from training.moved import say_where

if __name__ == "__main__":
    say_where("publish", "holistic-clip publish")
