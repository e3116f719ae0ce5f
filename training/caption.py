"""A pointer to `holistic-clip caption`, for one release."""

from training.moved import say_where

if __name__ == "__main__":
    say_where("caption", "holistic-clip caption")
