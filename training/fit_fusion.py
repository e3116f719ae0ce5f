"""A pointer to `holistic-clip fit`, for one release."""

from training.moved import say_where

if __name__ == "__main__":
    say_where("fit_fusion", "holistic-clip fit")
