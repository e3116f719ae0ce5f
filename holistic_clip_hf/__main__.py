"""`python -m holistic_clip_hf`: the same as the command `holistic-clip`."""

from .cli.main import main

if __name__ == "__main__":
    main()
