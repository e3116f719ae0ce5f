"""A few tries of each attack on the page, so that the script does not rot."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("gradio")

SCRIPT = Path(__file__).resolve().parents[1] / "campaigns" / "page.py"


def test_a_few_tries_of_each_attack_find_no_fault(tmp_path: Path) -> None:
    few = ["--paths", "60", "--addresses", "30", "--markups", "4", "--at-once", "24", "--queries", "60"]
    command = [sys.executable, str(SCRIPT), *few, "--records", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2_000:]
    records = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert records.keys() == {"page_paths", "page_addresses", "page_markups", "page_at_once", "page_queries"}
    for record in records.values():
        kinds = ("finished", "refused", "lost", "hung", "traceback", "foreign", "memory")
        assert sum(record[kind] for kind in kinds) == record["tries"] and record["faults"] == []
