"""`python -m holistic_clip_hf`: the same as the command `holistic-clip`."""

import sys


def main() -> None:
    """Run the command. Ctrl-C while it is still being imported ends it without a traceback, too.

    Raises:
        SystemExit: as the command does.
    """
    try:
        from .cli.main import main as run

        run()
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            raise
        sys.exit(130)


if __name__ == "__main__":
    main()
