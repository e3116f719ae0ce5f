"""Help of every verb and subcommand: examples first, names of values, one default, and no words of the parser."""

import logging
import os
import re
import signal
import subprocess
import sys

import pytest

from holistic_clip_hf import __version__
from holistic_clip_hf.cli.help import LAST_LINE
from holistic_clip_hf.cli.main import VERBS, dispatch, log_to_stderr, main

KINDS = {
    "search": ["index", "find", "check", "export", "import"],
    "corpus": ["folder", "list", "official", "tar", "dataset"],
    "caption": ["folder", "list", "official", "tar", "dataset"],
}
PAGES = [[verb] for verb in VERBS] + [[verb, kind] for verb, kinds in KINDS.items() for kind in kinds]


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        dispatch(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_a_page_of_help(page: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, *page, "--help")
    flat = re.sub(r"[\s│]+", " ", text)
    assert f"holistic-clip {page[0]} " in text.partition("╭")[0].partition("\n\n")[2], "an example comes first"
    assert text.rstrip().endswith(LAST_LINE) and "--debug" in LAST_LINE
    for word in ("{None}", "STR", "default: None", "default: )", "default: ''", "options options", "limits options"):
        assert word not in flat
    assert not re.search(r"╭─ (?!positional)\w+(?:\.\w+)? options ─", text), "a heading is the name of a field"
    for told in re.findall(r"Default: .*?(?= --[a-z]|╰)", flat):
        assert "(default:" not in told, "two defaults"
    for sentence in re.findall(r"^│ {2,}([a-z]\w+) ", text, re.MULTILINE):
        assert sentence != "pixels", "an entry begins with a capital"


def test_names_of_values(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate = shown(capsys, "evaluate", "--help")
    for part in ("--model CHECKPOINT", "--corpus CORPUS", "--masks NAME=FOLDER", "╭─ options of segmentation ─"):
        assert part in evaluate
    assert len({len(line) for line in evaluate.splitlines() if line[:1] in "╭╰│" and line}) == 1, "boxes are closed"
    find = shown(capsys, "search", "find", "--help")
    assert "--where COLUMN=VALUE ..." in find and "--like IMAGE" in find
    assert "REPO" in shown(capsys, "publish", "--help").partition("\n")[0]


def test_a_flag_that_is_on_has_a_pair(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "corpus", "folder", "--help")
    assert re.search(r"--rows FOLDER +│?[^╰]*?\(repeatable\)", text) and "--rows FOLDER ..." not in text
    assert "--report, --no-report" in text
    assert "--no-quotes" in shown(capsys, "corpus", "list", "--help")
    assert "--no-why" not in shown(capsys, "search", "find", "--help")


def test_ways_to_ask(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "help", "search", "find") == shown(capsys, "search", "find", "--help")
    for words in (["-V"], ["--version"]):
        dispatch(words)
        assert capsys.readouterr().out.strip() == __version__
    dispatch(["help"])
    assert capsys.readouterr().out.startswith("usage: holistic-clip VERB")
    dispatch([])
    assert "tcsh" not in capsys.readouterr().out  # the parser needs a package for it that is not installed


def test_only_our_own_words_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """Libraries have handlers of their own: one at the root said everything twice."""
    root, before = logging.getLogger(), list(logging.getLogger().handlers)
    with log_to_stderr():
        assert root.handlers == before
        logging.getLogger("holistic_clip_hf.search").info("told")
    assert capsys.readouterr().err == "told\n"
    assert not logging.getLogger("holistic_clip_hf").handlers


def test_stopped_while_it_is_imported() -> None:
    code = "import signal, sys, builtins; old = builtins.__import__\n"
    code += "def stop(name, *rest):\n"
    code += "    if name.endswith('difflib'): raise KeyboardInterrupt\n"
    code += "    return old(name, *rest)\n"
    code += "from holistic_clip_hf.__main__ import main\nbuiltins.__import__ = stop\nmain()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 130 and "Traceback" not in ended.stderr


def test_a_signal_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(given: object) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("holistic_clip_hf.cli.main.dispatch", stop)
    with pytest.raises(SystemExit) as ended:
        main(["train"])
    signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 130 and "train: stopped. Give the same command again" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_somebody_says_else(given: str | None, expected: str) -> None:
    """OpenMP itself tells what it goes by, when torch is imported."""
    shown = {**os.environ, "OMP_DISPLAY_ENV": "true"}
    shown |= {} if given is None else {"OMP_WAIT_POLICY": given}
    code = (
        "import contextlib, holistic_clip_hf.__main__ as command\nwith contextlib.suppress(SystemExit): command.main()"
    )
    ended = subprocess.run([sys.executable, "-c", f"{code}\nimport torch"], capture_output=True, text=True, env=shown)
    assert f"OMP_WAIT_POLICY = '{expected}'" in ended.stderr
