"""The Auto classes know ours in whatever order the imports come, and the package's import costs no torch.

Each case is a process of its own: what an interpreter has imported cannot be taken back.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "tests" / "data" / "checkpoints" / "0.1.0"
OURS = "assert type(model).__module__ == 'holistic_clip_hf.modeling_holistic_clip', type(model).__module__\n"
LOAD = f"model = AutoModel.from_pretrained({str(STORED / 'cls')!r})\n{OURS}"


def run(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_package_alone_imports_neither_torch_nor_transformers() -> None:
    run(
        "import sys, holistic_clip_hf\n"
        "dir(holistic_clip_hf)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(f"import holistic_clip_hf\nfrom transformers import AutoModel\n{LOAD}", id="ours first"),
        pytest.param(f"from transformers import AutoModel\nimport holistic_clip_hf\n{LOAD}", id="transformers first"),
        pytest.param(
            f"import transformers\nimport holistic_clip_hf\nAutoModel = transformers.AutoModel\n{LOAD}",
            id="transformers first, its classes last",
        ),
        pytest.param(
            "import threading, holistic_clip_hf\n"
            "def load():\n    import transformers\n    transformers.AutoModel, transformers.AutoProcessor\n"
            "threads = [threading.Thread(target=load) for _ in range(4)]\n"
            "[thread.start() for thread in threads], [thread.join() for thread in threads]\n"
            f"from transformers import AutoModel\n{LOAD}",
            id="in several threads at once",
        ),
    ],
)
def test_auto_classes_find_ours_whatever_is_imported_first(script: str) -> None:
    run(script)


TRAVELLING = sorted(path.stem for path in (ROOT / "holistic_clip_hf").glob("*_holistic_clip.py"))


@pytest.mark.parametrize("name", TRAVELLING)
def test_each_file_that_travels_may_be_imported_first(name: str) -> None:
    """The loss once met the model, which needs it, while it was half imported itself."""
    assert len(TRAVELLING) == 11
    run(f"import holistic_clip_hf.{name}\nfrom transformers import AutoModel\n{LOAD}")


def test_configuration_and_processor_are_found_and_nothing_is_left_behind() -> None:
    run(
        "import inspect, sys, holistic_clip_hf\n"
        "finders = [type(finder).__name__ for finder in sys.meta_path]\n"
        "from transformers import AutoConfig, AutoModelForZeroShotImageClassification, AutoProcessor\n"
        f"path = {str(STORED / 'mlp')!r}\n"
        "assert type(AutoConfig.from_pretrained(path)) is holistic_clip_hf.HolisticCLIPConfig\n"
        "assert type(AutoProcessor.from_pretrained(path)) is holistic_clip_hf.HolisticCLIPProcessor\n"
        "model = AutoModelForZeroShotImageClassification.from_pretrained(path)\n"
        f"{OURS}"
        "assert '_Watcher' in finders\n"
        "assert '_Watcher' not in [type(finder).__name__ for finder in sys.meta_path]\n"
        "assert 'class HolisticCLIPModel(' in inspect.getsource(sys.modules[type(model).__module__])\n"
    )
