"""Whatever the documents name is there: links, paths, commands, modules, imports; and nothing in them is private.

A path counts as one of the repository's when it begins with a folder of the repository or is a bare source file.
Fenced code is held to the same rules as `inline code`; a name in <angle brackets> is a placeholder.
"""

import ast
import doctest
import importlib
import pkgutil
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "holistic_clip_hf"
ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "training/README.md", "training/LOG.md"]
DOCUMENTS += ["tests/peers/README.md", "MIGRATION.md", "RELEASE.md", "SECURITY.md"]
DOCUMENTS += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
FOLDERS = {PACKAGE, "training", "tests", "model_cards", "docs", ".ci"}
SOURCE_SUFFIXES = {".py", ".cfg", ".toml", ".yaml", ".cff"}

FENCE = re.compile(r"^(?P<mark>```+|~~~+)[ ]*(?P<language>[\w+-]*)[^\n]*\n(?P<code>.*?)^(?P=mark)[ ]*$", re.M | re.S)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|(?:src|href)=\"([^\"]+)\"|^\[[^\]]+\]:\s*(\S+)", re.M)
PATH = re.compile(r"(?<![\w./<~$:-])\.?[\w*][\w.*-]*(?:/[\w.*-]+)*/?(?![\w<>(])")
MAKE = re.compile(r"\bmake((?:[ ]+[\w.-]+(?:=\S+)?)+)")
MODULE = re.compile(r"-m[ ]+((?:training|tests|holistic_clip_hf)[\w.]*)")

# Each character class keeps a pattern from matching its own source.
PRIVATE = {
    "a path of one machine": re.compile(r"(?<![\w.~}\]\[)/-])/(?:work|root|home|Users|opt|mnt|srv)/[\w.]"),
    "a Windows path": re.compile(r"\b[A-Z]:\\Users"),
    "a registry's host": re.compile(r"\b(?:pypi[.]org|pythonhosted[.]org|npmjs[.](?:org|com)|deb[.]debian[.]org)\b"),
}


def code_of(text: str) -> Iterator[tuple[str, str]]:
    """Every piece of code in a document as (language, code); inline code has the language `inline`."""
    for fence in FENCE.finditer(text):
        yield fence["language"].lower(), fence["code"]
    for inline in INLINE.finditer(FENCE.sub("", text)):
        yield "inline", inline[1]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")


def broken_links(text: str, folder: Path) -> list[str]:
    """Relative links that lead nowhere, anchors included."""
    problems = []
    for found in LINK.finditer(FENCE.sub("", text)):
        link = next(group for group in found.groups() if group)
        if re.match(r"[a-z][a-z+.-]*:|//", link):
            continue
        name, _, anchor = link.partition("#")
        target = folder / name
        if name and not target.exists():
            problems.append(f"the link {link} leads nowhere")
        elif anchor and (not name or target.suffix == ".md"):
            linked = target.read_text(encoding="utf-8") if name else text
            headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", linked), flags=re.M)
            if anchor not in {slug(heading) for heading in headings}:
                problems.append(f"the link {link} names a heading that is not there")
    return problems


def missing_paths(code: str, folder: Path, root: Path) -> list[str]:
    """Paths of the repository that the code names and that do not exist."""
    problems = []
    for path in PATH.findall(code):
        first = path.split("/")[0]
        if "/" in path and (first in FOLDERS or (folder != root and (folder / first).is_dir())):
            wanted = [root.glob(path.rstrip("/")), folder.glob(path.rstrip("/"))]
        elif "/" not in path and Path(path).suffix in SOURCE_SUFFIXES:
            wanted = [root.glob(path), *((root / name).rglob(path) for name in sorted(FOLDERS))]
        else:
            continue
        if not any(next(iter(hits), None) for hits in wanted):
            problems.append(f"{path} does not exist")
    return problems


def missing_commands(code: str, root: Path) -> list[str]:
    """Targets of make and modules of `python -m` that are not there."""
    makefile = root / "Makefile"
    targets = (
        set(re.findall(r"^([\w-]+):", makefile.read_text(encoding="utf-8"), re.M)) if makefile.exists() else set()
    )
    code = re.sub(r"#.*", "", code)
    named = {word for words in MAKE.findall(code) for word in words.split() if "=" not in word}
    problems = [f"make {target}: there is no such target" for target in sorted(named - targets)]
    for module in MODULE.findall(code):
        path = root / module.replace(".", "/")
        if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists():
            problems.append(f"python -m {module}: there is no such module")
    return problems


def broken_python(code: str) -> list[str]:
    """Why a block of Python would fail before it did anything: its syntax, or what it imports from the package."""
    if ">>> " in code:
        code = "".join(example.source for example in doctest.DocTestParser().get_examples(code))
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        return [f"a Python block does not compile: {error}"]
    problems = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            wanted = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        problems += [
            f"{module}{f'.{name}' if name else ''} cannot be imported"
            for module, name in wanted
            if module.split(".")[0] == PACKAGE and not importable(module, name)
        ]
    return problems


def importable(module: str, name: str | None) -> bool:
    """Whether `import module`, or `from module import name`, works."""
    try:
        imported = importlib.import_module(module)
        if name is not None and not hasattr(imported, name):
            importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != PACKAGE:
            raise
        return False
    return True


def problems_of(document: Path, root: Path) -> list[str]:
    """Everything that a document names and that is not there."""
    text = document.read_text(encoding="utf-8")
    problems = broken_links(text, document.parent)
    for language, code in code_of(text):
        if language in {"python", "py"}:
            problems += broken_python(code)
        else:
            problems += missing_paths(code, document.parent, root) + missing_commands(code, root)
    return problems


def private_text(text: str) -> list[str]:
    """What is true on one machine only, or names a package registry's host."""
    return [f"{what}: {found[0]}" for what, pattern in PRIVATE.items() for found in pattern.finditer(text)]


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if (ROOT / name).exists()])
def test_what_a_document_names_is_there(name):
    assert problems_of(ROOT / name, ROOT) == []


def test_no_file_names_one_machine_or_a_registry():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so the tracked files are not known")
    problems = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() and path.resolve() != Path(__file__).resolve() else b""
        if b"\0" not in content:
            problems += [f"{name}: {problem}" for problem in private_text(content.decode("utf-8", errors="replace"))]
    assert problems == []


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "Makefile").write_text("test: x\n\ttrue\n", encoding="utf-8")
    (tmp_path / "training" / "recipes").mkdir(parents=True)
    (tmp_path / "training" / "train.py").write_text("", encoding="utf-8")
    (tmp_path / "training" / "recipes" / "tiny.yaml").write_text("", encoding="utf-8")
    return tmp_path


SOUND = f"""
# A `heading`, twice
Make sure of it: `make test`, `make PYTHON=python3.12 test`, and [the recipe](training/recipes/tiny.yaml).
See [above](#a-heading-twice), [the web](https://example.org/a/b.py), `train.py`, `training/recipes/*.yaml`,
`org/model`, `*in.py`, `runs/mine/config.json`, `training/recipes/<name>.yaml` and `1/2`.

```bash
python -m training.train --recipe training/recipes/tiny.yaml --output runs/mine  # make a name
```

```python
from {PACKAGE} import HolisticCLIPConfig
print(HolisticCLIPConfig, ...)
```
"""


def test_a_sound_document_has_no_problems(repository):
    document = repository / "README.md"
    document.write_text(SOUND, encoding="utf-8")
    assert problems_of(document, repository) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[recipe](training/recipes/huge.yaml)", "the link training/recipes/huge.yaml leads nowhere"),
        ("[up](#missing)", "the link #missing names a heading that is not there"),
        ('<img src="docs/picture.png">', "the link docs/picture.png leads nowhere"),
        ("See `training/caption.py`.", "training/caption.py does not exist"),
        ("See `caption.py`.", "caption.py does not exist"),
        ("See `*_novelty.py`.", "*_novelty.py does not exist"),
        ("See `training/recipes/*.toml`.", "training/recipes/*.toml does not exist"),
        ("```\nholistic_clip_hf/\n    gone.py   what it was\n```", "gone.py does not exist"),
        ("Run `make tests`.", "make tests: there is no such target"),
        ("```bash\nmake test bench\n```", "make bench: there is no such target"),
        ("```bash\npython -m training.caption\n```", "python -m training.caption: there is no such module"),
        ("```python\nfor x in\n```", "a Python block does not compile"),
        ("```python\n>>> for x in\n```", "a Python block does not compile"),
        (f"```python\nfrom {PACKAGE} import Nonsense\n```", f"{PACKAGE}.Nonsense cannot be imported"),
        (f"```python\nimport {PACKAGE}.nonsense\n```", f"{PACKAGE}.nonsense cannot be imported"),
    ],
)
def test_a_missing_thing_is_named(repository, text, problem):
    document = repository / "README.md"
    document.write_text(text, encoding="utf-8")
    found = problems_of(document, repository)
    assert any(problem in one for one in found), found


@pytest.mark.parametrize("text", ["in /home/me/x", "(/opt/y)", "'/root/.cache'", "https://pypi.org/p"])
def test_private_text_is_found(text):
    assert private_text(text)


@pytest.mark.parametrize("text", ["and/or", "/tmp/x", "/dev/null", "training/work/x", "a.b/home/c"])
def test_ordinary_text_is_not_private(text):
    assert private_text(text) == []


def test_every_name_that_migration_sends_people_to_exists() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|$", (ROOT / "MIGRATION.md").read_text(), re.MULTILINE)
    assert len(rows) > 300
    missing = [now for _, now in rows if resolved(now) is None]
    assert missing == []


def resolved(name: str) -> object | None:
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return None
