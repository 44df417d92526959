"""The section `validation`, in the process or in its `train`."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.parametrize("place", [("validation:",), ("train:", "  validation:")])
def test_it_stands_in_the_process_or_in_train(section, place) -> None:
    indent = "  " * len(place)
    found = section(*place, f"{indent}every_n_steps: 50", f"{indent}fraction: 0.25").validation
    assert (found.every, found.fraction, found.folder_path, found.timesteps, found.seed) == (50, 0.25, None, 4, 0)


def test_there_is_none_by_default(section) -> None:
    assert section().validation is None
    assert section("validation:").validation is None


def test_two_places_that_differ_are_a_mistake(faults) -> None:
    found = faults("validation: {fraction: 0.1}", "train: {validation: {fraction: 0.2}}")
    assert len(found) == 1
    assert "mean the same" in found[0]


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("{}", "validation: names no images. Give 'folder_path', or the 'fraction'"),
        ("{every: 10}", "validation: names no images. Give 'folder_path', or the 'fraction'"),
        ("{fraction: 0.1, folder_path: photos}", "'folder_path' and 'fraction' cannot be combined"),
        ("{fraction: 0}", "validation.fraction"),
        ("{fraction: 0.6}", "validation.fraction"),
        ("{fraction: 10}", "validation.fraction"),
        ("{fraction: 0.1, every: -1}", "validation.every"),
        ("{fraction: 0.1, timesteps: 0}", "validation.timesteps"),
        ("{fraction: 0.1, resolution: 512}", "validation.resolution: only applies with 'folder_path'"),
        ("{fraction: 0.1, control_path_1: photos}", "validation.control_path_1: only applies with 'folder_path'"),
        ("{folder_path: nowhere}", "validation.folder_path: 'nowhere' does not exist"),
        ("{folder_path: photos, control_path: [photos, nowhere]}", "control_path[1]: 'nowhere' does not exist"),
        ("{folder_path: photos, resolution: 16}", "validation.resolution"),
        ("{fraction: 0.1, evry: 3}", "validation.evry: unknown key. Did you mean 'every'?"),
    ],
)
def test_a_mistake_is_named_at_its_place(faults, given: str, fault: str) -> None:
    found = faults(f"validation: {given}")
    assert len(found) == 1, found
    assert fault in found[0]


def test_the_other_trainers_section_is_not_this_one(faults) -> None:
    assert "not supported yet" in faults("train: {validation_config: {validation_items: []}}")[0]


def test_a_folder_is_a_dataset_that_takes_the_rest_from_the_datasets(section, tmp_path: Path) -> None:
    (tmp_path / "val").mkdir(exist_ok=True)
    job = section(
        "datasets:",
        "  - {folder_path: photos, is_reg: true, resolution: 32, caption_ext: no}",
        "  - {folder_path: photos, resolution: [512, 768], caption_ext: caption, num_repeats: 9, background: black,",
        "     captions_file: job.yaml, caption_prefix: drawn}",
        "  - {folder_path: photos, resolution: [768, 1024], default_caption: a cup, caption_dropout_rate: 0.5}",
        "validation: {folder_path: val, default_caption: a plate, control_path_2: photos, control_path_1: val}",
    )
    found = job.validation.dataset(job.datasets)
    assert (found.folder_path, found.control_path) == ("val", ("val", "photos"))
    assert (found.resolution, found.caption_ext) == ((512, 768, 1024), (".caption",))
    assert (found.default_caption, found.background) == ("a plate", "black")
    assert (found.num_repeats, found.caption_dropout_rate) == (1, 0.0)
    assert (found.captions_file, found.caption_prefix) == (None, "drawn"), "the file names other images"


def test_a_file_of_captions_that_is_not_there(faults) -> None:
    (found,) = faults("validation: {folder_path: photos, captions_file: none.tsv}")
    assert "validation.captions_file: 'none.tsv' does not exist" in found


def test_its_own_settings_come_first(section) -> None:
    keys = "folder_path: photos, resolution: 256, caption_ext: [txt, cap], trigger_word: maya, captions_file: job.yaml"
    job = section(f"validation: {{{keys}}}")
    found = job.validation.dataset(job.datasets)
    assert (found.resolution, found.caption_ext, found.trigger_word) == ((256,), (".txt", ".cap"), "maya")
    assert found.captions_file == "job.yaml"
