"""Put the test suites that transformers shares among its models where our peer tests import them from.

They are in the source distribution of the installed version, not in its wheel. Nothing of them is in this
repository: they are unpacked below `build/`, as the package `transformers_tests` (their own name, `tests`, is our
folder's). What the shared suites import and the source distribution lacks is written as a stub.

    python tests/peers/fetch_suites.py
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "transformers_tests"

# Each is what the suites for other kinds of models need; ours neither generate nor fetch from the Hub.
STUBS = {
    f"{PACKAGE}/__init__.py": "",
    f"{PACKAGE}/exporters/__init__.py": "",
    f"{PACKAGE}/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    f"{PACKAGE}/generation/__init__.py": "",
    f"{PACKAGE}/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    f"{PACKAGE}/utils/__init__.py": "",
    f"{PACKAGE}/utils/test_configuration_utils.py": (
        "config_common_kwargs = {\n"
        '    "output_hidden_states": True,\n'
        '    "output_attentions": True,\n'
        '    "return_dict": False,\n'
        '    "dtype": "float16",\n'
        '    "chunk_size_feed_forward": 5,\n'
        '    "architectures": ["BertModel"],\n'
        '    "id2label": {0: "label"},\n'
        '    "label2id": {"label": "0"},\n'
        '    "problem_type": "regression",\n'
        "}\n"
    ),
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def suites_folder(build: Path = ROOT / "build") -> Path:
    """Where the suites of the installed transformers are, or will be."""
    return build / f"transformers-{version('transformers')}-suites"


def download(folder: Path) -> Path:
    """The source distribution; pip compares it with the hash that the index states."""
    requirement = f"transformers=={version('transformers')}"
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--no-binary", "transformers"]
    subprocess.run([*command, "--dest", str(folder), requirement], check=True)
    return next(folder.glob("transformers-*.tar.gz"))


def unpack(archive: Path, folder: Path) -> None:
    """The modules at the top of the archive's `tests`, and the stubs.

    Raises:
        ValueError: the archive has no shared suite for models, so that its layout has changed.
    """
    (folder / PACKAGE).mkdir(parents=True)
    with tarfile.open(archive) as files:
        for member in files:
            parts = PurePosixPath(member.name).parts
            content = files.extractfile(member) if member.isfile() and parts[1:-1] == ("tests",) else None
            if content is not None:
                (folder / PACKAGE / parts[-1]).write_bytes(content.read())
    if not (folder / PACKAGE / "test_modeling_common.py").exists():
        raise ValueError(f"{archive.name} has no tests/test_modeling_common.py. Use a released transformers version.")
    for name, content in STUBS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def fetch(target: Path) -> None:
    """Download and unpack once; `target` appears complete or not at all."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        unpack(download(Path(scratch)), Path(scratch) / "suites")
        shutil.move(Path(scratch) / "suites", target)


if __name__ == "__main__":
    fetch(suites_folder())
