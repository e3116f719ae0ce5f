"""Other seeds than a recipe's own: their runs lie apart, and so do their records, as a file holds each number once."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar


class _Seeded(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...
    @property
    def training(self) -> dict[str, Any]: ...


AnyRecipe = TypeVar("AnyRecipe", bound=_Seeded)


def with_seed(recipe: AnyRecipe, seed: int | None) -> AnyRecipe:
    """Return a recipe with another seed, under a name that says it; unchanged if the seed is None or its own."""
    if seed in (None, recipe.training["seed"]):
        return recipe
    return replace(recipe, name=f"{recipe.name}_seed_{seed}", training={**recipe.training, "seed": seed})


def records_file(folder: Path, recipe: _Seeded, seed: int) -> Path:
    """Return the file of one seed's records in a folder of a recipe."""
    return folder / ("results.json" if seed == recipe.training["seed"] else f"results_seed_{seed}.json")
