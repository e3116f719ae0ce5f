"""What the benchmarks share: cases timed in turn, peak memory in a fresh process each, and the record of a run.

A record is written only if its ratios can be trusted. A ratio is the median of quotients, one for each round, and its
uncertainty is half the width of the median's 95 % interval, 1.57 times the interquartile range over the square root of
the number of rounds (McGill, Tukey, Larsen 1978, https://doi.org/10.1080/00031305.1978.10479236). If it is more than
`MOST_UNCERTAIN` of the median, the machine was busy with something else, and the record stays as it was. Records of
before have `spreads` instead, from the smallest to the largest quotient, which grow with rounds.
"""

import argparse
import importlib
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

RESULTS = Path(__file__).parent / "results"
MEBIBYTE = 2**20
MOST_UNCERTAIN = 0.1  # share of the median: as strict as the former 25 % from end to end are on average in 5 rounds
_uncertainties: dict[str, float] = {}  # of the ratios of this run
_absent: list[str] = []  # peers that are not installed


def interleaved(
    cases: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each case in each round. Taking turns, all cases share whatever else the machine is doing."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, run in cases.items():
            start = clock()
            run()
            if number:  # the first round warms up
                seconds[name].append(clock() - start)
        sys.stderr.write(f"\rround {number} of {rounds}")
    sys.stderr.write("\n")
    return seconds


def median_and_uncertainty(seconds: dict[str, list[float]], name: str, peer: str) -> tuple[float, float]:
    """Median over rounds of the quotient within a round, and its uncertainty, as a share of the median."""
    quotients = [ours / theirs for ours, theirs in zip(seconds[name], seconds[peer], strict=True)]
    median = statistics.median(quotients)
    if len(quotients) == 1:
        return median, 0.0
    first, _, third = statistics.quantiles(quotients, method="inclusive")
    return median, 1.57 * (third - first) / math.sqrt(len(quotients)) / median


def ratio(seconds: dict[str, list[float]], name: str, peer: str) -> float:
    """Median over rounds of the quotient within a round, whose uncertainty `write_record` looks at."""
    median, uncertainty = median_and_uncertainty(seconds, name, peer)
    key, number = f"{name} / {peer}", 1
    while (label := key if number == 1 else f"{key}, {number}") in _uncertainties:
        number += 1
    _uncertainties[label] = round(uncertainty, 3)
    return median


def find_peer(name: str) -> Any | None:
    """Another library to compare with, or nothing if it is not installed, which the record then tells."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"left out: {name} is not installed")
        _absent.append(name)
        return None


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_bytes(run: Callable[[], object]) -> int:
    """How far resident memory rises above where it stood, while `run` runs (Linux only)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def peak_in_fresh_process(script: str, case: str) -> int:
    """`python SCRIPT --memory CASE`, which prints `peak_bytes` of that case."""
    command = [sys.executable, script, "--memory", case, "--threads", str(torch.get_num_threads())]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def arguments(description: str | None, rounds: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help="timed rounds, after one that warms up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument(
        "--memory", metavar="CASE", help="print the peak memory of this case, in bytes, and nothing else"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    return chosen


def write_record(name: str, results: dict[str, Any]) -> None:
    """`results/NAME.json`: the numbers, and what is needed to repeat them.

    Raises:
        SystemExit: a ratio that is too uncertain; the file stays as it was.
    """
    if wide := {label: share for label, share in _uncertainties.items() if share > MOST_UNCERTAIN}:
        told = ", ".join(f"{label} (± {share:.0%})" for label, share in wide.items())
        sys.exit(
            f"Not written: results/{name}.json. Medians are uncertain by more than {MOST_UNCERTAIN:.0%}: {told}. The "
            "machine is busy; run it again when it is not, or with more --rounds."
        )
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    record = {
        "command": f"python tests/benchmarks/{name}.py {' '.join(sys.argv[1:])}".strip(),
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "seed": 0,
        **({"uncertainties": _uncertainties} if _uncertainties else {}),
        **({"peers_left_out": _absent} if _absent else {}),
        **results,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
