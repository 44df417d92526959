"""Tables as public data sets have their columns, which nothing explains: the key that
the message gives is filled in, and then the picture that is meant is trained."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.toolkit.data.conftest import refusal
from toolkit.data.scan.folder import scan_datasets

BEFORE, AFTER, MASK = (f"{name}/0.png" for name in ("before", "after", "mask"))
TOLD = "make it green"
MEANT = {"image": AFTER, "control": BEFORE, "prompt": TOLD}
"""Role -> the value of the column that is meant."""

COLUMNS: dict[str, tuple[dict[str, Any], str]] = {
    # sources: the data sets' pages; row, the roles of the key that is to be filled in
    "GPT-Image-Edit": ({"input": BEFORE, "output": AFTER, "instruction": TOLD}, "image, control"),
    "with spaces": ({"initial image": BEFORE, "final image": AFTER, "what to do": TOLD}, "image, prompt, control"),
    "Echo-4o": ({"instruction": TOLD, "input_images": [BEFORE], "output_picture": AFTER}, "image, control"),
    "CompBench": (
        {"original_image": BEFORE, "mask": MASK, "edited_image": AFTER, "editing_instruction": TOLD}, "image, control",
    ),
    "three pictures": (
        {"out": AFTER, "in": BEFORE, "mask": MASK, "say": TOLD}, "image, prompt"
    ),
    "a known image": ({"image": AFTER, "photo": BEFORE, "text": TOLD}, "image, control"),
    "an image that is known and not meant": ({"image": BEFORE, "image_edited": AFTER, "text": TOLD}, "image, control"),
    "one picture": ({"img": AFTER, "cap": TOLD}, "image, prompt"),
    "a caption of another name": ({"file_name": AFTER, "en_caption": "green", "width": 64}, "prompt"),
    "two captions": ({"file_name": AFTER, "zh": "一只猫在这里", "en": TOLD, "by": "anna"}, "prompt"),
    "a caption and a picture": ({"file_name": AFTER, "said": TOLD, "photo": BEFORE}, "prompt, control"),
    "in other words": ({"原图": BEFORE, "效果图": AFTER, "text": TOLD}, "image, control"),
    "a caption that is empty": ({"file_name": AFTER, "text": "", "zh": "一只猫在这里"}, "prompt"),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_the_key_that_is_filled_in_trains_the_picture_that_is_meant(
    tmp_path: Path, image, dataset, name: str
) -> None:
    row, roles = COLUMNS[name]
    for number, path in enumerate((BEFORE, AFTER, MASK)):
        image(tmp_path / path, colour=f"#{number}0ff00")
    table = tmp_path / "t.jsonl"
    table.write_text(json.dumps(row))
    section = partial(dataset, "", captions_file=str(table), resolution=(64,))
    (mistake,) = refusal([section()], None).errors
    found = re.search(r"Fill in 'columns: (\{.*?\})'", mistake.message)
    assert found, mistake.message
    several = ["control: [..., ...]"] * (MASK in row.values() and "out" in row)
    places = [f"{role}: ..." for role in roles.split(", ")]
    assert found[1] == "{" + ", ".join([*places, *several]) + "}"
    keys: dict[str, Any] = {}
    for role in yaml.safe_load(found[1]):
        meant = MEANT[role]
        columns = [key for key, value in row.items() if value in (meant, [meant])]
        texts = [key for key, value in row.items() if isinstance(value, str)]
        keys[role] = (columns or texts[1:])[-1]
    if MASK in row.values():
        keys["mask"] = "mask"
    (sample,) = scan_datasets([section(columns=keys)], None).samples
    place = f"{tmp_path}/".__add__
    has_before = BEFORE in row.values() or [BEFORE] in row.values()
    assert sample.image == place(AFTER)
    assert sample.caption == row.get(keys.get("prompt", ""), TOLD)
    assert sample.control_images == ((place(BEFORE),) if has_before else ())
