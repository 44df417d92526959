"""The tables of docs/models.md: what `run.py new` writes for each model and why, and
the published training adapters. Made from the table that `new` reads
(`toolkit/models/recipes.py`): `python docs/generate.py`."""

from __future__ import annotations

from itertools import groupby

from toolkit.models.recipes import RECIPES

BEGIN, END = "<!-- recipes -->\n", "<!-- end of recipes -->\n"
ADAPTERS_BEGIN, ADAPTERS_END = "<!-- adapters -->\n", "<!-- end of adapters -->\n"


def with_recipes(page: str) -> str:
    """The page with both tables between their marks."""
    for begin, table, end in (
        (BEGIN, recipes_table(), END),
        (ADAPTERS_BEGIN, adapters_table(), ADAPTERS_END),
    ):
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}{table}{end}{rest.partition(end)[2]}"
    return page


def recipes_table() -> str:
    """A row for the models that have the same values."""
    keys = (
        "model",
        "`train.lr`",
        "because",
        "`resolution`",
        "because",
        "`timestep_type`",
        "because",
        "rank",
    )
    rows = f"| {' | '.join(keys)} | `train.assistant` |\n|{'---|' * 9}\n"
    alike = groupby(RECIPES.items(), key=lambda entry: entry[1])
    for recipe, entries in (
        (recipe, [title for title, _ in found]) for recipe, found in alike
    ):
        adapter = "the first [below](#files-against-texture)" if recipe.adapters else ""
        cells = [
            ", ".join(entries),
            f"{recipe.lr:.4f}",
            recipe.lr_why,
            recipe.resolution,
            recipe.resolution_why,
        ]
        cells += [
            f"`{recipe.timestep_type}`"
            + (f", {recipe.flow_shift}" if recipe.flow_shift else ""),
            recipe.levels_why,
            recipe.rank,
            adapter,
        ]
        rows += f"| {' | '.join(map(str, cells))} |\n".replace("|  |", "| |")
    return rows


def adapters_table() -> str:
    """A row for each published file, of the first model that it is for."""
    rows = "| key | | licence | |\n|---|---|---|---|\n"
    recipe = RECIPES["Qwen-Image-2.1"]
    for key, files in (
        ("train.assistant", recipe.adapters),
        ("sample.vae_path", recipe.decoders),
    ):
        for file in files:
            rows += f"| `{key}` | `{file.name}` | {file.licence} | {file.note} |\n"
    return rows
