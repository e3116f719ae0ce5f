# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Registration of the classes with transformers' Auto classes, at the moment when somebody needs either of them.

`import holistic_clip_hf` has to make `AutoModel.from_pretrained` work, and must not cost the seconds that torch takes
to import, since the command's help would wait for it too. transformers has no entry points for other people's models.
So the modules of its Auto classes are watched for. When one has been imported, and torch with it, ours are registered.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = __name__.rpartition(".")[0]
AUTO = "transformers.models.auto"


def _register_configurations() -> None:
    from transformers import AutoConfig

    from .configuration_holistic_clip import HolisticCLIPConfig, HolisticCLIPVisionConfig

    for config in (HolisticCLIPConfig, HolisticCLIPVisionConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models() -> None:
    from transformers import AutoModel, AutoModelForImageClassification, AutoModelForZeroShotImageClassification

    from .configuration_holistic_clip import HolisticCLIPConfig, HolisticCLIPVisionConfig
    from .modeling_holistic_clip import HolisticCLIPForImageClassification, HolisticCLIPModel
    from .vision_holistic_clip import HolisticCLIPVisionModel

    AutoModel.register(HolisticCLIPConfig, HolisticCLIPModel, exist_ok=True)
    AutoModel.register(HolisticCLIPVisionConfig, HolisticCLIPVisionModel, exist_ok=True)
    AutoModelForImageClassification.register(HolisticCLIPConfig, HolisticCLIPForImageClassification, exist_ok=True)
    AutoModelForZeroShotImageClassification.register(HolisticCLIPConfig, HolisticCLIPModel, exist_ok=True)


def _register_processor() -> None:
    from transformers import AutoProcessor

    from .configuration_holistic_clip import HolisticCLIPConfig
    from .processing_holistic_clip import HolisticCLIPProcessor

    AutoProcessor.register(HolisticCLIPConfig, HolisticCLIPProcessor, exist_ok=True)


def _carry(home: str, classes: dict[str, str]) -> Callable[[], None]:
    """Return what makes saved checkpoints carry the classes' code along, for people who lack the package."""

    def register() -> None:
        for name, auto_class in classes.items():
            getattr(sys.modules[home], name).register_for_auto_class(auto_class)

    return register


# The module after whose import each is done.
_AFTER: dict[str, Callable[[], None]] = {
    f"{AUTO}.configuration_auto": _register_configurations,
    f"{AUTO}.modeling_auto": _register_models,
    f"{AUTO}.processing_auto": _register_processor,
    **{
        f"{PACKAGE}.{home}": _carry(f"{PACKAGE}.{home}", classes)
        for home, classes in {
            "configuration_holistic_clip": {
                "HolisticCLIPConfig": "AutoConfig",
                "HolisticCLIPVisionConfig": "AutoConfig",
            },
            "vision_holistic_clip": {"HolisticCLIPVisionModel": "AutoModel"},
            "modeling_holistic_clip": {
                "HolisticCLIPModel": "AutoModel",
                "HolisticCLIPForImageClassification": "AutoModelForImageClassification",
            },
            "processing_holistic_clip": {"HolisticCLIPProcessor": "AutoProcessor"},
        }.items()
    },
}


class _Watcher(MetaPathFinder):
    """A finder that finds nothing itself, and is told when a watched module has been imported."""

    def __init__(self) -> None:
        self._waiting = dict(_AFTER)
        self._begun: set[str] = set()  # watched modules that are being imported right now

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that the other finders give, with a loader that tells."""
        if name not in self._waiting or name in self._begun:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _TellingLoader(spec.loader, self)
                self._begun.add(name)
                return spec
        return None

    def finished(self, name: str) -> None:
        """Do what waited for this module, and what could not be done while it was being imported."""
        self._begun.discard(name)
        self.catch_up()

    def catch_up(self) -> None:
        """Register what can be: nothing that needs a module of ours that is still being imported."""
        if any(name.startswith(PACKAGE) for name in self._begun):
            return
        for name in list(self._waiting):
            if name in sys.modules and name not in self._begun and name in self._waiting:
                self._waiting.pop(name)()
        if not self._waiting and self in sys.meta_path:
            sys.meta_path.remove(self)


class _TellingLoader(Loader):
    def __init__(self, loader: Loader, watcher: _Watcher) -> None:
        self._loader = loader
        self._watcher = watcher

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Whoever asks a module for its source or its data asks the loader that has them.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        try:
            self._loader.exec_module(module)
        finally:
            self._watcher._begun.discard(module.__name__)
        self._watcher.finished(module.__name__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def register_when_needed() -> None:
    """Register the classes now if transformers' Auto classes are imported already, else as soon as they are."""
    watcher = _Watcher()
    sys.meta_path.insert(0, watcher)
    watcher.catch_up()
