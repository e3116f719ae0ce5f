"""How long the command takes to answer for its help: seconds, and as a ratio to `python -c "import argparse"`.

    python tests/benchmarks/startup.py

Asked of it: the command's help within 1.0 s, a verb's within 1.5 s, on an idle machine.
"""

import statistics
import subprocess
import sys
import time

from _measure import write_record

ROUNDS = 7
REFERENCE = [sys.executable, "-c", "import argparse"]
COMMANDS = {
    "holistic-clip --help": ["--help"],
    **{
        f"holistic-clip {verb} --help": [verb, "--help"]
        for verb in ("caption", "corpus", "train", "finetune", "evaluate", "fit", "search", "card", "publish", "demo")
    },
    "import holistic_clip_hf": None,
}


def seconds_of(command: list[str]) -> float:
    """Return the wall seconds of one run."""
    begin = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def main() -> None:
    """Time each command in turn with the reference, and keep medians."""
    results = {}
    for name, arguments in COMMANDS.items():
        program = ["-c", "import holistic_clip_hf"] if arguments is None else ["-m", "holistic_clip_hf", *arguments]
        pairs = [(seconds_of([sys.executable, *program]), seconds_of(REFERENCE)) for _ in range(ROUNDS)]
        ours, reference = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        results[name] = {"seconds": round(ours, 3), "argparse_seconds": round(reference, 3), "ratio": round(ratio, 2)}
        print(f"{name:32} {ours:6.3f} s {ratio:6.2f} times argparse")
    write_record("startup", {"rounds": ROUNDS, "results": results})


if __name__ == "__main__":
    main()
