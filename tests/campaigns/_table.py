"""Table of the campaigns in SECURITY.md, made of their records: `python tests/campaigns/_table.py`."""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "SECURITY.md"
BEGIN, END = "<!-- campaigns: begin -->", "<!-- campaigns: end -->"
HEAD = "| campaign | what is tried | tries | well | refused | lost | hung | traceback, crash | foreign code | other |"
LINE = "|---|---|---|---|---|---|---|---|---|---|"
# Records of other scripts beside these have these keys at least.
NUMBERS = ("tries", "lost", "hung")


def count(record: dict[str, Any], *names: str) -> int:
    return sum(int(record.get(name, 0)) for name in names)


def row(name: str, record: dict[str, Any]) -> str:
    """Return the row of one record."""
    tries = f"{record['tries']:,}" + (f" ({record['kills']:,} kills)" if "kills" in record else "")
    planned = record.get("tries_of_the_whole_campaign", record["tries"])
    tries += f" of {planned:,}" if record["tries"] < planned else ""
    cells = [name.replace("_", " "), str(record.get("about", "")), tries, count(record, "finished")]
    cells += [count(record, "refused"), count(record, "lost"), count(record, "hung")]
    cells += [count(record, "traceback", "tracebacks", "crashed"), count(record, "foreign", "foreign_code")]
    cells += [count(record, "memory", "unclear")]
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def table(records: Path) -> str:
    """Return the table of all records in a folder, one row each, and the commits that they are of."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(records.glob("*.json"))}
    found = {name: record for name, record in found.items() if all(key in record for key in NUMBERS)}
    rows = [row(name, record) for name, record in found.items()]
    commits = sorted({str(record.get("commit", "unknown")) for record in found.values()})
    notes = [f"{name}: {record['note']}" for name, record in found.items() if record.get("note")]
    about = [f"Measured at {', '.join(f'`{commit}`' for commit in commits)}.", *notes]
    return "\n".join([HEAD, LINE, *rows, "", *about])


def write(page: Path, records: Path) -> None:
    """Put the table between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    block = f"{BEGIN}\n{table(records)}\n{END}"
    page.write_text(re.sub(f"{BEGIN}.*{END}", lambda found: block, text, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    write(PAGE, HERE / "results")
