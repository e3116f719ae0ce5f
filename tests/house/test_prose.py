"""How the house speaks: docstrings, help texts, raised sentences and documents, read by rule.

The rules are those of CONTRIBUTING.md, "Prose". They find what makes a reader stop, not what is badly said.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("holistic_clip_hf", "training", ".ci")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "MIGRATION.md", "RELEASE.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "training" / "README.md",
]

# A function does something, so its first word is a verb in its base form. A new verb is added here; a noun is not.
KNOWN = """
accumulate add allocate allow annotate answer apply ask average begin bound break build calibrate check choose
classify collect commit compare connect construct convert copy count create cut decide delete describe do draw drop
embed encode end estimate evaluate execute export fail fetch fill find fit format freeze fuse gather give group hash
hide hold import index join judge keep learn leave list load lock log look lower make map mark match measure merge
move multiply name note open parse pick plan prepare print provide publish push put raise rank read refuse register
remove render repeat replace require reset resize restore return run save say scale score select serve set shorten
show shuffle skip sort split stand start stop stretch sum switch take tell tokenise train turn update use verify wait
walk warn wrap write yield
"""
VERBS = set(KNOWN.split())
# A class or module is a thing, but a clause is no name for it.
NO_NOUN = {
    "what",
    "of",
    "those",
    "where",
    "whether",
    "how",
    "when",
    "which",
    "as",
    "whom",
    "who",
    "why",
    "that",
    "to",
    "in",
}
# The third person of our verbs, and of some that name what a class is for. Some are plural nouns as well.
THIRD = {form for verb in VERBS for form in (f"{verb}s", f"{verb}es", re.sub("y$", "ies", verb))} - VERBS
THIRD |= {"asks", "carries", "finds", "gives", "hides", "knows", "remembers", "sends", "wraps"}
PLURALS = {
    "names",
    "scores",
    "splits",
    "maps",
    "ranks",
    "ends",
    "marks",
    "scales",
    "sets",
    "counts",
    "measures",
    "notes",
}
PROPERTIES = {"property", "cached_property", "setter"}
TWISTED = {
    r"(?<![Tt]here )\b(?:is|are|was|were) none\b(?!`)": "say `is not a ...` or `there is no ...`",
    r"(?<![Tt]here )\b(?:is|are) no (?!longer\b|more\b|less\b|better\b|smaller\b|larger\b)\w+": "say `is not a ...`",
    r"\bno \w+'s\b": "say `is not that of a ...`",
    r"\bthat (?:is|are|was|were) there\b": "say given, present or missing",
    r"\bwhat (?:is|was) there\b": "say what exists, or what is present",
}
ENTRY = re.compile(r"^    (?P<name>\*{0,2}\w+(?:, \*{0,2}\w+)*): (?P<text>.+)$")
BAD_ENTRY = re.compile(r"(?:of|what|how|where|whether|so many|as|likewise|behind|by|for|in|to|whom)\b", re.IGNORECASE)
CODE = re.compile(r"`[^`]*`|https?://\S+|\{[^{}]*\}|[A-Za-z_.]*\w:\d+|\d+:\d+|\"[^\"]*\"|\([^()]*\)")


def docstrings(tree: ast.Module) -> Iterator[tuple[ast.AST, str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node, text, getattr(node, "lineno", 1)


def prose_of(docstring: str) -> str:
    """Return a docstring without examples, indented code, and sections that enumerate (shapes, errors)."""
    lines, is_code = [], False
    for line in docstring.split("\n"):
        if not lines[-1:] or (line.startswith("    ") and not lines[-1]):
            is_code = line.startswith("    ")
        if re.fullmatch(r"\s*(?:Raises|Shapes)\b.*", line) or line.strip().startswith((">>>", "...", "```")):
            is_code = True
        elif not line.strip():
            is_code = False
            lines.append("")
        elif not is_code:
            lines.append(line)
    return "\n".join(lines)


def sentences(text: str) -> Iterator[str]:
    """Split prose at full stops, blank lines, list items and section heads; code and parentheses are cut out."""
    text = CODE.sub("X", text)
    # an entry of a section (`name: text`), a list item, an indented block or a head starts a new sentence
    blocks = re.split(r"\n\s*\n|\n\s*[-*|] |\n(?= {4,}\*{0,2}[\w, ]+: )|(?<=:)\n", text)
    for block in blocks:
        block = re.sub(r"^\s*\*{0,2}[\w, ]+: (?=\S)", "", block) if re.match(r"^\s{4,}", block) else block
        yield from re.split(r"(?<=[.!?])\s+", " ".join(block.split()))


def prose_problems(text: str) -> Iterator[str]:
    flat = " ".join(text.split())
    for pattern, remedy in TWISTED.items():
        for found in re.finditer(pattern, flat):
            yield f"{found.group()!r}: {remedy}"
    for sentence in sentences(text):
        sentence = re.sub(
            r"^(?:Row |Image |Class )?X(?:, \w+(?: X)?(?: to X)?)?: ", "", sentence
        )  # a place, not a clause
        if len(re.findall(r"[;:](?=\s|$)", sentence.rstrip(":"))) > 1:
            yield f"more than one colon or semicolon in {sentence!r}"


def first_word(text: str) -> str:
    found = re.match(r"[A-Za-z']+", text)
    return found.group().casefold() if found else ""


def head_problem(node: ast.AST, text: str) -> str | None:
    word = first_word(text)
    if isinstance(node, ast.Module | ast.ClassDef):
        is_clause = word in NO_NOUN or (isinstance(node, ast.ClassDef) and word in THIRD - PLURALS)
        return f"{word!r} does not begin a noun phrase" if is_clause else None
    names = {getattr(each, "attr", getattr(each, "id", "")) for each in node.decorator_list}  # type: ignore[attr-defined]
    if names & PROPERTIES:
        return f"{word!r} does not begin a noun phrase" if word in NO_NOUN else None
    return None if word in VERBS else f"{word or text[:12]!r} is not a verb of this house"


def entry_problems(text: str) -> Iterator[str]:
    section = ""
    for line in text.split("\n"):
        if re.fullmatch(r"[A-Z]\w+:", line):
            section = line
        elif section == "Args:" and (entry := ENTRY.match(line)) and BAD_ENTRY.match(entry["text"]):
            yield f"the entry {entry['name']!r} does not begin with a noun: {entry['text']!r}"


def text_of(node: ast.expr) -> str | None:
    """Return the text of a literal or of an f-string, with {} for what it fills in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
        return "".join(str(part) for part in parts)
    return None


def raised(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            text = text_of(node.exc.args[-1])
            if text is not None and " " in text:
                yield text, node.lineno


def error_problems(text: str) -> Iterator[str]:
    if re.match(r"Got\b", text):
        yield f"begins with 'Got': {text!r}; name the thing: '`name` is X; expected Y. Do Z.'"
    if re.search(r"\b(?:Valid|There are|It has): ", text):
        yield f"speaks in the other form: {text!r}; say '; expected ...'"


def problems_of(path: Path) -> list[str]:
    tree, found = ast.parse(path.read_text(encoding="utf-8")), []
    for node, text, line in docstrings(tree):
        told = [head_problem(node, text), *entry_problems(text), *prose_problems(prose_of(text))]
        found += [f"{path.name}:{line}: {problem}" for problem in told if problem]
    for text, line in raised(tree):
        found += [f"{path.name}:{line}: {problem}" for problem in (*error_problems(text), *prose_problems(text))]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_and_errors_follow_the_rules(path: Path) -> None:
    problems = problems_of(path)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents_follow_the_rules(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"!\[.*?\]|^:::.*$|^\|.*\|$", "", text, flags=re.MULTILINE)  # pictures, API entries, tables
    problems = [f"{path.name}: {problem}" for problem in prose_problems(text)]
    assert not problems, "\n".join(problems)


BAD = '''
class Reader:
    """Reads what is said."""


class MissingError(Exception):
    """Why there is no answer."""


def sizes():
    """Sizes of each."""


def size(n):
    """Of it, say what is there; and of it: all.

    Args:
        n: of images.
    """
    raise ValueError(f"Got {n}, which is no number. Valid: 1.")
'''


def test_the_rules_find_what_they_are_for(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(BAD)
    found = "\n".join(problems_of(path))
    for part in (
        "'of' is not a verb",
        "'sizes' is not a verb",
        "'reads' does not begin a noun phrase",
        "'why' does not begin a noun phrase",
        "exists, or what is present",
        "colon",
        "with a noun",
        "'Got'",
        "other form",
        "not a",
    ):
        assert part in found
