"""Images of one prompt, of which somebody says which are better: as `candidates.jsonl`
in their folder names them, one line for each prompt, or as the settings in the images
say. Imports no torch."""

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
    """Images of one prompt and the same control images, made by one model."""

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
        """The group of one image. settings: of `image_files.Settings`. Raises UserError
        where they are not."""
        try:
            control = tuple(
                os.path.relpath(os.path.expanduser(one["path"]), folder)
                for one in settings["reference"]
            )
            lora = tuple(str(one["path"]) for one in settings["lora"])
            model = str(settings["model"]["name_or_path"])
            seed = int(settings["seed"])
            return cls(
                str(settings["prompt"]), control, model, (seed,), (lora,), (file,)
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"'{folder / file}' has no settings of an image ({error})."
            ) from None


def joined(groups: Iterable[Group]) -> tuple[Group, ...]:
    """One group for each prompt, its control images and its model, with all files."""
    found: dict[Group, dict[str, tuple[int, tuple[str, ...]]]] = {}
    for group in groups:
        rows = zip(group.files, group.seed, group.lora, strict=True)
        key = replace(group, seed=(), lora=(), files=())
        found.setdefault(key, {}).update(
            {file: (seed, lora) for file, seed, lora in rows}
        )
    return tuple(
        replace(
            key,
            files=(*rows,),
            seed=tuple(seed for seed, _ in rows.values()),
            lora=tuple(lora for _, lora in rows.values()),
        )
        for key, rows in found.items()
    )


def read_groups(folder: Path) -> tuple[Group, ...]:
    """The groups that `candidates.jsonl` names; without it those of the PNG images in
    the folder that say how they were made. Raises UserError for a `candidates.jsonl`
    that is not of this program."""
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
            lora = tuple(tuple(map(str, each)) for each in row["lora"])
            groups += joined(
                [
                    Group(
                        str(row["prompt"]),
                        control,
                        str(row["model"]),
                        seed,
                        lora,
                        files,
                    )
                ]
            )
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
    """Adds groups to `candidates.jsonl`. Raises UserError as `read_groups`, RunError
    where it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        if (folder / CANDIDATES).exists():
            there = read_groups(folder)
        else:
            there = ()
        rows = (
            json.dumps(asdict(group), ensure_ascii=False)
            for group in joined((*there, *groups))
        )
        write_text(folder / CANDIDATES, "".join(f"{row}\n" for row in rows))
