"""Tables as public data sets have their columns: each remedy is followed as it is
written to the end, and then the picture that is trained is the one that is meant."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from toolkit.data.scan.folder import scan_datasets
from toolkit.errors import DataErrors

BEFORE, AFTER, MASK, LOSER, OTHER = (
    f"{name}/0.png" for name in ("before", "after", "mask", "loser", "other")
)
TOLD = "make it green"
"""The caption that is meant; other texts are other columns."""

EDITS: dict[str, dict[str, Any]] = {
    # sources: the data sets' pages, or the papers' repositories, as they name columns
    "input, output": {"input": BEFORE, "output": AFTER, "instruction": TOLD},
    "the other way round": {"output": AFTER, "instruction": TOLD, "input": BEFORE},
    "with spaces": {"initial image": BEFORE, "edited image": AFTER, "edit instruction": TOLD},
    "trg": {"src_img": BEFORE, "trg_img": AFTER, "edit_prompt": TOLD},
    "tgt": {"src_image": BEFORE, "tgt_image": AFTER, "text": TOLD},
    "AnyEdit": {
        "image_file": BEFORE, "edited_file": AFTER, "edit": TOLD, "input": "a red house by the sea",
        "output": "a green house by the sea", "edit_type": "colour alter", "visual_input": None,
    },
    "image, image_edited": {"image": BEFORE, "image_edited": AFTER, "instruction": TOLD},
    "image, edited_image": {"image": BEFORE, "edited_image": AFTER, "edit_prompt": TOLD},
    "image_path, edited_path": {"image_path": BEFORE, "edited_path": AFTER, "instruction": TOLD},
    "MagicBrush": {"img_id": "1", "source_img": BEFORE, "mask_img": MASK, "instruction": TOLD, "target_img": AFTER},
    "UltraEdit": {
        "source_image": BEFORE, "edited_image": AFTER, "mask_image": MASK, "edit_prompt": TOLD,
        "source_caption": "a red house by the sea",
    },
    "HumanEdit": {
        "IMAGE_ID": "1", "EDITING_TYPE": "Add", "EDITING_INSTRUCTION": TOLD, "OUTPUT_DESCRIPTION": "a green house",
        "INPUT_IMG": BEFORE, "MASK_IMG": MASK, "OUTPUT_IMG": AFTER,
    },
    "OmniEdit": {"src_img": BEFORE, "edited_img": AFTER, "edited_prompt_list": [TOLD], "task": "attribute"},
    "LGIE": {
        "id": "1", "original_image": BEFORE, "edited_image": AFTER, "initial_edit_region_mask": MASK,
        "final_edit_region_mask": OTHER, "edit_instruction": TOLD,
    },
    "HQ-Edit": {
        "input": "a red house by the sea", "input_image": BEFORE, "edit": TOLD, "inverse_edit": "make it red again",
        "output": "a green house by the sea", "output_image": AFTER,
    },
    "ShareGPT-4o-Image": {"input_prompt": TOLD, "input_image": [BEFORE], "output_image": AFTER},
    "Echo-4o": {"instruction": TOLD, "input_images": [BEFORE], "output_image": AFTER, "type": "edit"},
    "GPT-Image-Edit": {"id": "1", "instruction": TOLD, "input": BEFORE, "output": AFTER},
    "CompBench": {"original_image": BEFORE, "mask": MASK, "edited_image": AFTER, "editing_instruction": TOLD},
    "SEED-Data-Edit": {"source_image": BEFORE, "target_image": AFTER, "instruction": TOLD},
    "clip-filtered": {
        "original_prompt": "a red house", "original_image": BEFORE, "edit_prompt": TOLD,
        "edited_prompt": "a green house", "edited_image": AFTER,
    },
    "cartoonizer": {"original_image": BEFORE, "edit_prompt": TOLD, "cartoonized_image": AFTER},
    "a sketch beside": {
        "original_image": BEFORE, "edited_image": AFTER, "sketch_image": OTHER, "edit_instruction": TOLD,
    },
    "fill50k": {"image": AFTER, "conditioning_image": BEFORE, "text": TOLD},
    "an image and its mask": {"image": AFTER, "mask": MASK, "masked_image": BEFORE, "edit_prompt": TOLD},
    "camel case": {"beforeImage": BEFORE, "afterImage": AFTER, "prompt": TOLD},
    "start, end": {"start_frame": BEFORE, "end_frame": AFTER, "caption": TOLD},
    "image, result": {"image": BEFORE, "result": AFTER, "prompt": TOLD},
    "image, depth": {"image": AFTER, "depth": BEFORE, "caption": TOLD},
    "photo, sketch": {"photo": BEFORE, "sketch": AFTER, "text": TOLD},
    "low, high": {"low": BEFORE, "high": AFTER, "text": TOLD},
    "person, cloth": {"person": AFTER, "cloth": BEFORE, "caption": TOLD},
    "image, image2": {"image": BEFORE, "image2": AFTER, "text": TOLD},
    "file_name, stylized": {"file_name": BEFORE, "stylized": AFTER, "text": TOLD},
    "edits in other words": {"原图": BEFORE, "效果图": AFTER, "text": TOLD},
    "a longer text of another kind": {
        "input": BEFORE, "output": AFTER, "category": "a change of colour, as people say it", "said": TOLD,
    },
    "two that end": {"output_1": AFTER, "output_2": OTHER, "input": BEFORE, "prompt": TOLD},
    "lose first": {"lose_image": LOSER, "win_image": AFTER, "prompt": TOLD},
}  # fmt: skip


OPEN = {
    *(
        "photo, sketch",
        "low, high",
        "person, cloth",
        "image, image2",
        "file_name, stylized",
    ),
    *("edits in other words", "two that end"),
}
"""Layouts whose names do not say which image is trained: the places stay open."""


def columns_in(message: str) -> dict[str, Any]:
    """The keys of the job that a message gives."""
    found = re.search(r"'columns: (\{.*?\})'", message)
    assert found, message
    keys = yaml.safe_load(found[1])
    return {
        key: [names] if isinstance(names, str) else names for key, names in keys.items()
    }


def followed(row: dict[str, Any], folder: Path, dataset) -> tuple[Any, bool]:
    """The sample of a row, once every remedy was followed, and whether the user had to
    fill in open places."""
    table = folder / "t.jsonl"
    keys: dict[str, Any] = {}
    was_open = False
    for _ in range(4):
        table.write_text(json.dumps(row))
        try:
            (sample,) = scan_datasets(
                [dataset("", captions_file=str(table), columns=keys)], None
            ).samples
        except DataErrors as error:
            (mistake,) = error.errors
            keys = columns_in(mistake.message)
            was_open |= ["AFTER"] in keys.values()
            for open_place, value in (("AFTER", AFTER), ("BEFORE", BEFORE)):
                meant = [key for key in row if row[key] == value]
                for role, names in keys.items():
                    keys[role] = [
                        each
                        for name in names
                        for each in (meant if name == open_place else [name])
                    ]
        else:
            return sample, was_open
    raise AssertionError(f"still refused with {keys}")


@pytest.mark.parametrize("name", EDITS)
def test_remedies_that_are_followed_train_the_picture_that_is_meant(
    tmp_path: Path, image, dataset, name: str
) -> None:
    row = EDITS[name]
    for number, path in enumerate((BEFORE, AFTER, MASK, LOSER, OTHER)):
        image(tmp_path / path, colour=f"#{number}0ff00")
    sample, was_open = followed(row, tmp_path, partial(dataset, resolution=(64,)))
    assert was_open == (name in OPEN)
    place = f"{tmp_path}/".__add__
    assert sample.image == place(AFTER) and sample.caption == TOLD
    assert set(sample.control_images) <= {place(BEFORE), place(OTHER)}
    has_before = BEFORE in row.values() or [BEFORE] in row.values()
    assert has_before == (place(BEFORE) in sample.control_images)
