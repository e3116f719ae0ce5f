"""Nothing in this project reads a pickle or runs code that it found in a file: every call is looked at."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("holistic_clip_hf", "training") for path in (ROOT / folder).rglob("*.py"))

UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RUNNERS = {"eval", "exec", "compile", "__import__", "system", "popen", "read_pickle", "to_pickle"}
# A call and what it must say, or must not say.
MUST = {("torch", "load"): ("weights_only", True)}
MUST_NOT = {"allow_pickle": True, "shell": True, "trust_remote_code": True, "weights_only": False}
INSTEAD = {
    ("torch", "save"): "writes a pickle; use safetensors",
    ("yaml", "load"): "may build any object; use yaml.safe_load",
    ("yaml", "full_load"): "may build any object; use yaml.safe_load",
    ("yaml", "unsafe_load"): "builds any object; use yaml.safe_load",
}


# It loads, in an interpreter of its own, what this package has staged and `require_own_code` has compared.
MAY_RUN_ITS_OWN_CODE = "holistic_clip_hf/publishing/stranger.py"


def dangers(source: str) -> list[str]:
    """What in a file could run code that was read, as sentences with line numbers."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: imports {name}" for name in names if name.split(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.Call):
            found += [f"{node.lineno}: {problem}" for problem in call_problems(node)]
    return found


def call_problems(call: ast.Call) -> list[str]:
    said = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
    problems = [f"says {name}={value}" for name, value in MUST_NOT.items() if said.get(name) is value]
    if isinstance(call.func, ast.Name) and call.func.id in RUNNERS:
        problems.append(f"calls {call.func.id}")
    if isinstance(call.func, ast.Attribute):
        owner = call.func.value.id if isinstance(call.func.value, ast.Name) else ""
        name = (owner, call.func.attr)
        if call.func.attr in RUNNERS - {"eval", "compile"}:  # `model.eval()`, `torch.compile` and `re.compile`
            problems.append(f"calls {'.'.join(name)}")
        if name in INSTEAD:
            problems.append(f"{'.'.join(name)} {INSTEAD[name]}")
        keyword, value = MUST.get(name, ("", None))
        if keyword and said.get(keyword) is not value:
            problems.append(f"calls {'.'.join(name)} without {keyword}={value}")
    return problems


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_that_was_read_is_run(path: Path) -> None:
    found = dangers(path.read_text(encoding="utf-8"))
    if path == ROOT / MAY_RUN_ITS_OWN_CODE:
        found = [problem for problem in found if not problem.endswith("says trust_remote_code=True")]
    assert found == []


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import pickle", "1: imports pickle"),
        ("from dill import loads", "1: imports dill"),
        ("def f():\n    import joblib.numpy_pickle", "2: imports joblib.numpy_pickle"),
        ("torch.load(path)", "1: calls torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "1: says weights_only=False"),
        ("torch.load(path, weights_only=chosen)", "1: calls torch.load without weights_only=True"),
        ("torch.save(state, path)", "1: torch.save writes a pickle; use safetensors"),
        ("np.load(path, allow_pickle=True)", "1: says allow_pickle=True"),
        ("yaml.load(text)", "1: yaml.load may build any object; use yaml.safe_load"),
        ("eval(text)", "1: calls eval"),
        ("exec(text)", "1: calls exec"),
        ("os.system(text)", "1: calls os.system"),
        ("subprocess.run(text, shell=True)", "1: says shell=True"),
        ("AutoModel.from_pretrained(name, trust_remote_code=True)", "1: says trust_remote_code=True"),
        ("pd.read_pickle(path)", "1: calls pd.read_pickle"),
    ],
)
def test_each_danger_is_seen(source: str, problem: str) -> None:
    assert problem in dangers(source)


def test_what_looks_alike_is_left_alone() -> None:
    harmless = (
        "model.eval(); re.compile('a'); torch.compile(model); torch.load(path, weights_only=True); f(shell=False)"
    )
    assert dangers(harmless) == []
