"""Writes docs/config.md and docs/job.schema.json from the section models,
docs/coming_from.md from the table of other programs' names, the drawing in
docs/architecture.md from the imports, config/examples/train_*.yaml from their template,
the guides' tables of GPUs, the tables of recipes in docs/models.md, and that of cards in
docs/times.md: `python docs/generate.py`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from docs.card_table import BEGIN as CARDS_BEGIN  # noqa: E402
from docs.card_table import END as CARDS_END  # noqa: E402
from docs.card_table import card_table  # noqa: E402
from docs.config_page import render  # noqa: E402
from docs.drawing import drawing  # noqa: E402
from docs.gpu_table import with_tables  # noqa: E402
from docs.names_page import page  # noqa: E402
from docs.recipes_table import with_recipes  # noqa: E402
from extensions.tools.shared.examples import MODELS, example_text  # noqa: E402
from toolkit.config.reading.reference import schema, schema_text  # noqa: E402
from toolkit.extension import discover  # noqa: E402
from toolkit.files.writing import EXTENSIONS_ROOT  # noqa: E402

BEGIN, END = "<!-- drawing -->\n", "<!-- end of the drawing -->\n"
"""The marks around the drawing."""

BY_HAND = "<!-- by hand -->\n"
"""What stands below this mark is kept."""

WITH_TABLES = ("first_character.md",)
"""Guides with a table of GPUs."""

FIRST = ("sd_trainer", "cache", "tiny_model")


def section_models() -> Mapping[str, type[BaseModel]]:
    """Process type -> section model of the program's extensions."""
    found = discover([EXTENSIONS_ROOT]).configs()
    # the template to copy
    models = {uid: model for uid, model in found.items() if uid != "example"}
    return dict(
        sorted(
            models.items(),
            key=lambda pair: (FIRST.index(pair[0]) if pair[0] in FIRST else 3, pair[0]),
        )
    )


def pages() -> dict[Path, str]:
    """Each generated file and what it must hold."""
    models = section_models()
    architecture = ROOT / "docs" / "architecture.md"
    before, _, rest = architecture.read_text(encoding="utf-8").partition(BEGIN)
    coming_from = ROOT / "docs" / "coming_from.md"
    kept = coming_from.read_text(encoding="utf-8").partition(BY_HAND)[2]
    times = ROOT / "docs" / "times.md"
    above, _, below = times.read_text(encoding="utf-8").partition(CARDS_BEGIN)
    models_page = ROOT / "docs" / "models.md"
    return {
        models_page: with_recipes(models_page.read_text(encoding="utf-8")),
        architecture: f"{before}{BEGIN}{drawing()}\n{END}{rest.partition(END)[2]}",
        ROOT / "docs" / "config.md": render(models),
        coming_from: f"{page(models)}\n{BY_HAND}{kept}",
        ROOT / "docs" / "job.schema.json": f"{schema_text(schema(models))}\n",
        times: f"{above}{CARDS_BEGIN}{card_table()}{CARDS_END}{below.partition(CARDS_END)[2]}",
        **{
            page: with_tables(page.read_text(encoding="utf-8"))
            for page in (ROOT / "docs" / name for name in WITH_TABLES)
        },
        **dict(examples()),
    }


def examples() -> Iterator[tuple[Path, str]]:
    """The jobs of published models. The planned memory in their first line stays:
    tests/config/test_examples.py holds it against the plan."""
    for model in MODELS:
        for gpu in model.examples:
            path = ROOT / "config" / "examples" / f"train_{model.file}_{gpu}gb.yaml"
            found = (
                re.search(r"planned peak (\S+) GB\.", path.read_text(encoding="utf-8"))
                if path.is_file()
                else None
            )
            yield path, example_text(model, gpu, found[1] if found else "0.0")


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path.relative_to(ROOT))
