"""A pointer to `holistic-clip card`, for one release."""

from training.moved import say_where

if __name__ == "__main__":
    say_where("card", "holistic-clip card")
