"""A pointer to `holistic-clip demo`, for one release."""

import sys

if __name__ == "__main__":
    sys.stderr.write("python -m holistic_clip_hf.demo is gone; use `holistic-clip demo`, with the same options.\n")
    sys.exit(2)
