"""Make the suites that `make test-peers` unpacked importable, as `transformers_tests`; count what ran, per class."""

import sys
from collections import Counter, defaultdict

import pytest
from fetch_suites import suites_folder  # beside this file: pytest puts its folder on the path

# What the shared suites mark their tests with; they leave out by themselves what this machine cannot run.
MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "order",
    "torch_compile_test",
)
OUTCOMES = ("passed", "skipped", "deselected", "xfailed", "failed")


def pytest_configure(config: pytest.Config) -> None:
    suites = suites_folder()
    if not suites.exists():
        raise pytest.UsageError(f"{suites} is missing: the suites are not fetched. Run `make test-peers`.")
    sys.path.insert(0, str(suites))
    for name in MARKERS:
        config.addinivalue_line("markers", f"{name}: a mark of the shared suites")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of `tests/peers/README.md`."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in OUTCOMES:
        for report in terminalreporter.stats.get(outcome, []):
            counts[report.nodeid.split("::")[1].split("[")[0]][outcome] += 1
    terminalreporter.write_line("| class | " + " | ".join(OUTCOMES) + " |")
    for name, count in counts.items():
        terminalreporter.write_line(f"| `{name}` | " + " | ".join(str(count[outcome]) for outcome in OUTCOMES) + " |")
