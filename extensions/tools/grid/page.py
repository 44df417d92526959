"""The page of a grid: columns of LoRA files, rows of prompts. Markup, look and script
are in grid.html.j2, .css and .js.

It generates no image. The process of the grid calls `grid_page` before the first image
and after each one, so the page can be opened at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from extensions.tools.shared.generation import LoraFile, Picture
from extensions.tools.shared.html_page import link_to, page
from toolkit.files.redact import redact_text


@dataclass(frozen=True)
class Column:
    """A LoRA file with its strength; without a file: the model alone.

    >>> Column.of([]).name
    'without LoRA'
    >>> Column.of([LoraFile("my_char.safetensors", 0.8, "")]).strength
    0.8
    """

    name: str
    file: str | None
    strength: float | None

    @classmethod
    def of(cls, loras: Sequence[LoraFile]) -> Column:
        """The column of no file, or of one."""
        if not loras:
            return cls("without LoRA", None, None)
        return cls(Path(loras[0].path).stem, loras[0].path, loras[0].strength)


@dataclass(frozen=True)
class Row:
    """A prompt with its cfg and seed.

    Example::

        pictures = [maker.picture(item, 42, 4.0, loras) for loras in columns]
        page = grid_page(heads, [Row(pictures)], maker.folder, title)
    """

    pictures: Sequence[Picture]
    """One of each column."""

    @property
    def prompt(self) -> str:
        """Without secrets."""
        return redact_text(self.pictures[0].prompt.prompt)

    @property
    def cfg(self) -> float:
        """The guidance scale."""
        return self.pictures[0].prompt.guidance_scale

    @property
    def seed(self) -> int:
        """Seed of the noise."""
        return self.pictures[0].prompt.seed


def grid_page(
    columns: Sequence[Column], rows: Sequence[Row], folder: Path, title: str
) -> str:
    """The page, which is in `folder` with the images. Images that do not exist yet are
    blank."""
    names = [[picture.name for picture in row.pictures] for row in rows]
    first = rows[0].pictures[0].settings if rows else {}
    data = {
        "id": hashlib.sha256(repr(names).encode()).hexdigest()[:16],
        "columns": [
            {"lora": column.file, "strength": column.strength, "name": column.name}
            for column in columns
        ],
        "rows": [
            {"prompt": row.prompt, "cfg": row.cfg, "seed": row.seed} for row in rows
        ],
        "files": names,
    }

    def address(picture: Picture) -> str:
        path = folder / picture.name
        return link_to(path, folder) if path.is_file() else ""

    steps = ""
    if rows:
        steps = f"{first['model']['name_or_path']}, {first['steps']} steps, {first['dtype']}"
    return page(
        Path(__file__).with_name("grid.html.j2"),
        f"Grid: {redact_text(title)}",
        css=f"#grid {{ --columns: {len(columns)}; }}\n",
        data=data,
        steps=steps,
        columns=columns,
        rows=rows,
        address=address,
    )
