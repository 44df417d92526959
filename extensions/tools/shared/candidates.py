"""Groups of candidate images: images of one prompt that a user compares and votes on.

`candidates.jsonl` in the folder of the images has one line per group. Without that file
the groups are read from the settings that the PNG images hold. This module writes no
votes: `ui/votes` does. Imports no torch.

`prefer` adds the groups that it generates; `ui/votes` and the views of the page read
them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from extensions.tools.shared.image_files import Settings, read_settings
from toolkit.errors import UserError
from toolkit.files.writing import folder_lock, read_regular, write_text

CANDIDATES = "candidates.jsonl"
VOTES = "votes.jsonl"
"""In the same folder: the votes, which are a table of captions
(docs/preferences.md)."""


@dataclass(frozen=True)
class Group:
    """Images of one prompt and the same control images, made by one model.

    >>> first = Group("a cat", seed=(1,), lora=((),), files=("cat_1.png",))
    >>> second = Group("a cat", seed=(2,), lora=((),), files=("cat_2.png",))
    >>> joined([first, second])[0].files
    ('cat_1.png', 'cat_2.png')
    """

    prompt: str
    control: tuple[str, ...] = ()
    """Paths of the control images from the folder."""

    model: str = ""
    seed: tuple[int, ...] = ()
    lora: tuple[tuple[str, ...], ...] = ()
    """Paths of the LoRA files of each image, from the working directory."""

    files: tuple[str, ...] = ()
    """Names of the images; seed and lora have an item for each."""

    @classmethod
    def of(cls, settings: Settings, file: str, folder: Path) -> Group:
        """The group of one image. settings: as `image_files.Settings`. Raises UserError
        where keys are missing or have other types."""
        try:
            control = [
                os.path.relpath(os.path.expanduser(image["path"]), folder)
                for image in settings["reference"]
            ]
            lora = tuple(str(one["path"]) for one in settings["lora"])
            model = str(settings["model"]["name_or_path"])
            seed = int(settings["seed"])
            return cls(
                str(settings["prompt"]),
                tuple(control),
                model,
                (seed,),
                (lora,),
                (file,),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"'{folder / file}' has no settings of an image ({error})."
            ) from None


def joined(groups: Iterable[Group]) -> tuple[Group, ...]:
    """One group for each prompt, its control images and its model, with all files."""
    rows_by_group: dict[Group, dict[str, tuple[int, tuple[str, ...]]]] = {}
    for group in groups:
        key = replace(group, seed=(), lora=(), files=())
        rows = rows_by_group.setdefault(key, {})
        for file, seed, lora in zip(group.files, group.seed, group.lora, strict=True):
            rows[file] = (seed, lora)
    return tuple(
        replace(
            key,
            files=tuple(rows),
            seed=tuple(seed for seed, _ in rows.values()),
            lora=tuple(lora for _, lora in rows.values()),
        )
        for key, rows in rows_by_group.items()
    )


def read_groups(folder: Path) -> tuple[Group, ...]:
    """The groups that `candidates.jsonl` names, or without it the groups of the PNG
    images in the folder that hold their settings. Raises UserError for a
    `candidates.jsonl` that this program did not write."""
    path = folder / CANDIDATES
    try:
        text = read_regular(path).decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return joined(_of_images(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    groups: list[Group] = []
    for number, line in enumerate(filter(str.strip, text.split("\n")), 1):
        try:
            row = json.loads(line)
            files, control = (tuple(map(str, row[key])) for key in ("files", "control"))
            seed = tuple(map(int, row["seed"]))
            lora = tuple(tuple(map(str, paths)) for paths in row["lora"])
            group = Group(
                str(row["prompt"]), control, str(row["model"]), seed, lora, files
            )
            groups += joined([group])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            remedy = "Remove the line, or give another folder"
            raise UserError(
                f"{path}:{number}: was not written by this program. {remedy}"
            ) from None
    return tuple(groups)


def _of_images(folder: Path) -> Iterable[Group]:
    for path in sorted(folder.glob("*.png")):
        with suppress(UserError):
            yield Group.of(read_settings(path), path.name, folder)


def add_groups(folder: Path, groups: Iterable[Group]) -> None:
    """Adds groups to `candidates.jsonl`. Raises UserError as `read_groups` does, and
    RunError where the file cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        there = read_groups(folder) if (folder / CANDIDATES).exists() else ()
        rows = map(asdict, joined((*there, *groups)))
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_text(folder / CANDIDATES, "".join(lines))
