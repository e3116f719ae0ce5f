"""`python -m holistic_clip_hf`: the same as the command `holistic-clip`."""

import os
import sys


def main() -> None:
    """Run the command. Ctrl-C while it is still being imported ends it without a traceback, too.

    Raises:
        SystemExit: as the command does.
    """
    # Threads that wait for each other sleep instead of spinning. Two trainings on two cores spin six times as long as
    # they compute (training/LOG.md). OpenMP reads it when torch is imported, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from .cli.main import main as run

        run()
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            raise
        sys.exit(130)


if __name__ == "__main__":
    main()
