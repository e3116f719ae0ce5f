"""A pointer to `holistic-clip demo`, for one release."""

import sys

if __name__ == "__main__":
    sys.exit("python -m holistic_clip_hf.demo is gone; use `holistic-clip demo`, with the same options.")
