"""The campaigns: `python tests/campaigns [NAME ...] [--tries N] [--seed S]`; all of them take hours.

Each writes `results/NAME.json`, and the table in SECURITY.md is made of these. An interrupted campaign goes on.
"""

import argparse
import importlib
import os
import shutil
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = (
    "kills",
    "full_disks",
    "two_processes",
    "images",
    "tars",
    "configurations",
    "weights",
    "recipes",
    "records",
    "manifests",
    "mistakes",
)


def prepare_environment(work: Path) -> None:
    """Make libraries stay offline and write below `work`; they read this when they are imported."""
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"), "1")
    quiet = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    folders = {"HF_HOME": str(work / "hub"), "XDG_CACHE_HOME": str(work / "cache"), "HOME": str(work / "home")}
    os.environ.update({**offline, **quiet, **folders, "COLUMNS": "200"})
    for folder in (HERE.parents[1], HERE.parent):
        sys.path.insert(1, str(folder))


def main() -> None:
    """Run the campaigns that are named, write their records, and end with 1 if a fault was found."""
    parser = argparse.ArgumentParser(prog="python tests/campaigns", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"campaigns: {', '.join(NAMES)}; default: all")
    parser.add_argument("--tries", type=int, help="number of tries of each; default: those of the whole campaign")
    parser.add_argument("--seconds", type=float, help="stop a campaign after so long, and record the tries made")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat the try of this number, and record nothing")
    parser.add_argument("--records", type=Path, default=HERE / "results", help="folder of the records")
    parser.add_argument("--journals", type=Path, help="folder by which an interrupted campaign goes on")
    parser.add_argument("--note", default="", help="sentence to keep with the record")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(NAMES)):
        parser.error(f"got {', '.join(unknown)}; expected some of {', '.join(NAMES)}")

    import _frame

    work = _frame.make_work_folder()
    prepare_environment(work)
    _frame.import_all()
    faults = 0
    try:
        for name in options.names or NAMES:
            began = time.monotonic()
            faults += run_campaign(name, options, work)
            sys.stderr.write(f"{name}: {time.monotonic() - began:.0f} s\n")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(bool(faults))


def run_campaign(name: str, options: argparse.Namespace, work: Path) -> int:
    """Run one campaign, and return the number of faults that it found."""
    import _frame

    campaign = importlib.import_module(name).CAMPAIGN
    if obstacle := campaign.obstacle():
        sys.stderr.write(f"{name} is left out: {obstacle}\n")
        return 0
    runner = _frame.Runner(campaign, options.seed, options.records, work, options.journals or _frame.JOURNALS)
    if options.only is not None:
        sys.stderr.write(f"{runner.repeat(options.only)}\n")
        return 0
    outcomes = runner.outcomes(options.tries or campaign.tries, seconds=options.seconds)
    record = runner.record(outcomes, options.note)
    return sum(record[kind] for kind in _frame.FAULTS)


if __name__ == "__main__":
    main()
