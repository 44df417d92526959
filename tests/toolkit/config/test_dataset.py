"""Shapes of a dataset section."""

from __future__ import annotations

import pytest

from toolkit.config.dataset import Rectangle, area_of


@pytest.mark.parametrize(
    ("keys", "field", "value"),
    [
        ("resolution: 512", "resolution", (512,)),
        ("resolution: [1024, 1024]", "resolution", (1024,)),
        ("resolution: [768, 512, 768]", "resolution", (768, 512)),
        ("resolution: {width: 960, height: 544}", "resolution", (Rectangle(width=960, height=544),)),
        ("resolution: [64, {width: 96, height: 64}]", "resolution", (64, Rectangle(width=96, height=64))),
        ("caption_ext: txt", "caption_ext", (".txt",)),
        ("caption_ext: [.caption, txt]", "caption_ext", (".caption", ".txt")),
        ("caption_type: txt", "caption_ext", (".txt",)),
        ("fixed_prompt_prefix: ' style anime '", "caption_prefix", "style anime"),
        ("control_path: photos", "control_path", ("photos",)),
        ("control_path: [photos, ./photos]", "control_path", ("photos", "./photos")),
        ("control_suffix: _ref", "references", ("control_suffix", ("_ref",))),
        ("control_path_2: ./photos, control_path_1: photos", "control_path", ("photos", "./photos")),
        ("control_path: , control_path_1: photos, control_path_2: ''", "control_path", ("photos",)),
        ("control_transparent_color: [0, 255, 16]", "background", "#00ff10"),
        ("background: '#FF00aa'", "background", "#ff00aa"),
        ("cache_text_embeddings: true", "cache_text_embeddings", True),
        ("keep_tokens: 0", "cache_text_embeddings", None),
        ("num_repeats: ", "num_repeats", None),
    ],
)
def test_shapes_of_a_dataset(section, keys: str, field: str, value: object) -> None:
    found = section(f"datasets: [{{folder_path: photos, {keys}}}]").datasets[0]
    assert getattr(found, field) == value


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("resolution: 16", "resolution: 16 is out of range: must be >= 32."),
        ("resolution: [64, 16]", "resolution[1]: 16 is out of range: must be >= 32."),
        ("resolution: [64, true]", "resolution[1]: true is not a number."),
        ("resolution: {width: 64}", "resolution.height: is required."),
        ("resolution: {width: 64, height: 16}", "resolution.height: 16 is out of range: must be >= 32."),
        ("resolution: [64, {width: 64, height: 64, x: 1}]", "resolution[1].x: unknown key. Known names: height, width"),
        ("resolution: []", "resolution: has 0 entries: must be at least 1."),
        ("num_repeats: 0", "num_repeats: 0 is out of range: must be >= 1."),
        ("background: clear", "background: 'clear' is not a valid colour."),
        ("control_transparent_color: [0, 1]", "control_transparent_color: is not a valid colour."),
        ("captions_file: photos", "captions_file: 'photos' is not a file. Give a text file of lines with file name,"),
        ("control_path: [a, b, c, d, e, f, g, h, i, j, k]", "control_path: has 11 entries: must be at most 10."),
        ("control_path: photos, control_path_1: photos", "control_path_1: 'control_path' and 'control_path_1' are"),
        ("control_path_1: 5", 'control_path_1: 5 is not text. Put it in quotes: "5"'),
        ("batch_size: 2", "batch_size: 2 is not supported yet. The nearest here is 'train.batch_size': one for all"),
        ("prior_reg: true", "prior_reg: true is not supported yet."),
        ("control_path: photos, control_suffix: _ref", "control_suffix: does not work with 'control_path'. Remove one"),
        ("mask_suffix: -m, alpha_mask: true", "mask_suffix: 'mask_suffix' and 'alpha_mask' cannot be combined. Remove"),
        ("mask_path: photos, mask_suffix: -m", "mask_path: 'mask_path' and 'mask_suffix' cannot be combined. Remove"),
        ("mask_min_value: 1.5", "mask_min_value: 1.5 is out of range: must be <= 1."),
        ("loss_multiplier: -1", "loss_multiplier: -1 is out of range: must be >= 0."),
        ("num_workers: -1", "num_workers: -1 is out of range: must be >= 0."),
    ],
)
def test_mistakes_of_a_dataset(faults, keys: str, message: str) -> None:
    (found,) = faults(f"datasets: [{{folder_path: photos, {keys}}}]")
    assert found.startswith(f"datasets[0].{message}")


def test_a_validation_set_may_have_a_rectangle_or_that_of_the_datasets(section) -> None:
    shape, other = Rectangle(width=96, height=64), Rectangle(width=64, height=32)
    images = "datasets: [{folder_path: photos, resolution: {width: 96, height: 64}}]"
    found = section(images, "validation: {folder_path: photos}")
    assert found.validation.dataset(found.datasets).resolution == (shape,)
    found = section(images, "validation: {folder_path: photos, resolution: {width: 64, height: 32}}")
    assert found.validation.dataset(found.datasets).resolution == (other,)


def test_the_area_of_a_size_is_its_most_pixels() -> None:
    assert [area_of(64), area_of(Rectangle(width=96, height=64))] == [64 * 64, 96 * 64]
