"""The verbs that were modules here, for one release: each says what has taken its place, and ends.

python -m training.caption -> holistic-clip caption
"""

import sys
from typing import NoReturn


def say_where(old: str, new: str) -> NoReturn:
    """Name the command that has taken the place of a module, and end as of a wrong command line."""
    print(
        f"python -m training.{old} is gone; use `{new}`, with the same options. MIGRATION.md lists what changed.",
        file=sys.stderr,
    )
    sys.exit(2)
