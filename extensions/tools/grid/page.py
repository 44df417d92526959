"""The page of a grid: columns of LoRA files, rows of prompts. Its look and its script are in grid.css and grid.js."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from extensions.tools.shared.generation import LoraFile, Picture
from extensions.tools.shared.html_page import Markup, element, link_to, page
from toolkit.files.redact import redact_text

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Column:
    """A LoRA file with its strength; without a file: the model alone."""

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
    """A prompt with its cfg and seed."""

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
        """Of the noise."""
        return self.pictures[0].prompt.seed


def grid_page(columns: Sequence[Column], rows: Sequence[Row], folder: Path, title: str) -> str:
    """The page, which lies in `folder` beside the pictures; those that are not there yet are blank."""
    css, js = ((_HERE / f"grid.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    css += f"#grid {{ --columns: {len(columns)}; }}\n"
    names = [[picture.name for picture in row.pictures] for row in rows]
    head = element("tr", element("th", _tools()), [_column_head(index, column) for index, column in enumerate(columns)])
    body = [
        element(
            "tr",
            element("th", _row_head(row), _hide(f"row {index + 1}"), scope="row"),
            [_cell(index, place, picture, folder) for place, picture in enumerate(row.pictures)],
            data_row=index,
        )
        for index, row in enumerate(rows)
    ]
    table = element("table", element("thead", head), element("tbody", body), id="grid")
    first = rows[0].pictures[0].settings if rows else {}
    steps = f"{first['model']['name_or_path']}, {first['steps']} steps, {first['dtype']}" if rows else ""
    data = {
        "id": hashlib.sha256(repr(names).encode()).hexdigest()[:16],
        "columns": [{"lora": column.file, "strength": column.strength, "name": column.name} for column in columns],
        "rows": [{"prompt": row.prompt, "cfg": row.cfg, "seed": row.seed} for row in rows],
        "files": names,
    }
    inside = (
        element("p", redact_text(steps), class_="faint"),
        element("p", "Arrow keys move, Enter opens, F marks a favourite, Escape closes.", class_="faint"),
        _bar(),
        element("div", table, class_="wide"),
        _lightbox(),
    )
    return page(f"Grid: {redact_text(title)}", *inside, css=css, js=js, data=data)


def _bar() -> Markup:
    return element(
        "div",
        element("label", "Size ", element("input", type="range", id="size", min=80, max=600, value=220)),
        element("button", "Show all", id="show", hidden=True),
        element("button", "Export favourites", id="export"),
        element("span", id="count", class_="faint"),
        class_="bar",
    )


def _tools() -> Markup:
    return element("span", "prompt", class_="faint")


def _hide(what: str) -> Markup:
    return element("button", "hide", class_="hide", aria_label=f"hide {what}")


def _column_head(index: int, column: Column) -> Markup:
    strength = element("span", f"x {column.strength:g}", class_="faint") if column.strength is not None else None
    head = element("div", element("b", column.name), " ", strength)
    return element("th", head, _hide(column.name), scope="col", data_column=index)


def _row_head(row: Row) -> Markup:
    values = element("span", f"cfg {row.cfg:g}, seed {row.seed}", class_="faint")
    return element("div", element("p", row.prompt), values)


def _cell(row: int, column: int, picture: Picture, folder: Path) -> Markup:
    size = picture.prompt.size
    place = {"data_row": row, "data_column": column}
    if not (folder / picture.name).is_file():
        return element("td", element("div", "not made yet", class_="blank faint"), **place)
    address, name = link_to(folder / picture.name, folder), f"row {row + 1}, column {column + 1}"
    image = element("img", src=address, loading="lazy", width=size.width, height=size.height, alt=name)
    star = element("button", "\N{WHITE STAR}", class_="star", aria_label=f"favourite {name}", aria_pressed="false")
    return element("td", element("button", image, class_="open", aria_label=f"open {name}"), star, **place)


def _lightbox() -> Markup:
    buttons = element(
        "div",
        element("button", "previous", id="previous"),
        element("button", "favourite", id="mark"),
        element("button", "next", id="next"),
        element("button", "close", id="close"),
        class_="bar",
    )
    inside = (element("img", id="large", alt=""), element("p", id="told"), buttons)
    return element("div", inside, id="box", role="dialog", aria_modal="true", aria_label="picture", hidden=True)
