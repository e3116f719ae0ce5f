"""How long the command takes to answer for its help: seconds, and as a ratio to `python -c "import argparse"`.

    python tests/benchmarks/startup.py

Asked of it: the command's help within 1.0 s, a verb's within 1.5 s, on an idle machine.
"""

import statistics
import subprocess
import sys
from functools import partial

from _measure import interleaved, ratio, write_record

ROUNDS = 7
PEER = "argparse"
COMMANDS = {
    PEER: ["-c", "import argparse"],
    "holistic-clip --help": ["-m", "holistic_clip_hf", "--help"],
    **{
        f"holistic-clip {verb} --help": ["-m", "holistic_clip_hf", verb, "--help"]
        for verb in ("caption", "corpus", "train", "finetune", "evaluate", "fit", "search", "card", "publish", "demo")
    },
    "import holistic_clip_hf": ["-c", "import holistic_clip_hf"],
}


def main() -> None:
    """Time the commands in turn, and keep medians."""
    runs = {
        name: partial(subprocess.run, [sys.executable, *command], stdout=subprocess.DEVNULL, check=True)
        for name, command in COMMANDS.items()
    }
    seconds, results = interleaved(runs, ROUNDS), {}
    for name, found in seconds.items():
        median, quotient = statistics.median(found), ratio(seconds, name, PEER)
        results[name] = {"seconds": round(median, 3), "ratio": round(quotient, 2)}
        print(f"{name:32} {median:6.3f} s {quotient:6.2f} times argparse")
    write_record("startup", {"rounds": ROUNDS, "results": results})


if __name__ == "__main__":
    main()
