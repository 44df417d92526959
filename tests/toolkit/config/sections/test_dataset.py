"""Shapes of a dataset section, of a stream of shards as the only one, and of
`validation`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parts import needs_foreign_names
from tests.toolkit.config.conftest import trainer
from toolkit.config.sections.dataset import ColumnsConfig, Rectangle, area_of
from toolkit.config.sections.trainer import ImageTrainingSection
from toolkit.data.streams.sample_keys import SampleKeys
from toolkit.train.config_diff import diff_configs


@needs_foreign_names
@pytest.mark.parametrize(
    ("keys", "field", "value"),
    [
        ("resolution: 512", "resolution", (512,)),
        ("resolution: [1024, 1024]", "resolution", (1024,)),
        ("resolution: [768, 512, 768]", "resolution", (768, 512)),
        (
            "resolution: {width: 960, height: 544}",
            "resolution",
            (Rectangle(width=960, height=544),),
        ),
        (
            "resolution: [64, {width: 96, height: 64}]",
            "resolution",
            (64, Rectangle(width=96, height=64)),
        ),
        ("caption_ext: txt", "caption_ext", (".txt",)),
        ("caption_ext: [.caption, txt]", "caption_ext", (".caption", ".txt")),
        ("fixed_prompt_prefix: ' style anime '", "caption_prefix", "style anime"),
        ("control_path: photos", "control_path", ("photos",)),
        ("control_path: [photos, ./photos]", "control_path", ("photos", "./photos")),
        ("control_suffix: _ref", "references", ("control_suffix", ("_ref",))),
        (
            "control_path_2: ./photos, control_path_1: photos",
            "control_path",
            ("photos", "./photos"),
        ),
        (
            "control_path: , control_path_1: photos, control_path_2: ''",
            "control_path",
            ("photos",),
        ),
        ("background: '#FF00aa'", "background", "#ff00aa"),
        ("cache: Latents", "cache", "latents"),
        ("keep_tokens: 0", "cache", None),
        ("num_repeats: ", "num_repeats", None),
        (
            "columns: {control: a, mask: m, prompt: p}",
            "columns",
            ColumnsConfig(control=("a",), mask=("m",), prompt=("p",)),
        ),
        ("columns: {control: [a, b]}", "columns", ColumnsConfig(control=("a", "b"))),
    ],
)
def test_shapes_of_a_dataset(section, keys: str, field: str, value: object) -> None:
    found = section(f"datasets: [{{folder_path: photos, {keys}}}]").datasets[0]
    assert getattr(found, field) == value


@needs_foreign_names
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("resolution: 16", "resolution: 16 is out of range: must be >= 32."),
        ("resolution: [64, 16]", "resolution[1]: 16 is out of range: must be >= 32."),
        ("resolution: [64, true]", "resolution[1]: true is not a number."),
        ("resolution: {width: 64}", "resolution.height: is required."),
        (
            "resolution: {width: 64, height: 16}",
            "resolution.height: 16 is out of range: must be >= 32.",
        ),
        (
            "resolution: [64, {width: 64, height: 64, x: 1}]",
            "resolution[1].x: unknown key. Known names: height, width",
        ),
        ("resolution: []", "resolution: has 0 entries: must be at least 1."),
        ("num_repeats: 0", "num_repeats: 0 is out of range: must be >= 1."),
        ("background: clear", "background: 'clear' is not a valid colour."),
        (
            "columns: {control: a, mask: a}",
            "columns.mask: 'a' is given as 'control' too. Remove one of them.",
        ),
        (
            "columns: {mask: [a, b]}",
            "columns.mask: takes one column. Give the one that is meant.",
        ),
        (
            "columns: {caption: a}",
            "columns.caption: unknown key. Known names: control, ignore, image, mask, prompt, ",
        ),
        (
            "columns: {mask: a}, alpha_mask: true",
            "alpha_mask: cannot be combined with 'columns.mask'. Remove one",
        ),
        (
            "captions: [a, b]",
            "captions: a list: is not a name. Use 'one' or 'lines' or 'names'.",
        ),
        (
            "captions: true",
            "captions: true: is not a name. Use 'one' or 'lines' or 'names'.",
        ),
        (
            "captions_file: photos",
            "captions_file: 'photos' is not a file. Give a text file whose lines are file name",
        ),
        (
            "control_path: [a, b, c, d, e, f, g, h, i, j, k]",
            "control_path: has 11 entries: must be at most 10.",
        ),
        (
            "control_path: photos, control_path_1: photos",
            "control_path_1: 'control_path' and 'control_path_1' are",
        ),
        ("control_path_1: 5", 'control_path_1: 5 is not text. Put it in quotes: "5"'),
        (
            "batch_size: 2",
            "batch_size: 2 is not supported yet. The nearest here is 'train.batch_size': one for all",
        ),
        (
            "random_crop: true",
            "random_crop: unknown key. docs/config.md lists the keys",
        ),
        (
            "control_path: photos, control_suffix: _ref",
            "control_suffix: cannot be combined with 'control_path'. Remove",
        ),
        (
            "mask_suffix: -m, alpha_mask: true",
            "mask_suffix: 'mask_suffix' and 'alpha_mask' cannot be combined. Remove",
        ),
        (
            "mask_path: photos, mask_suffix: -m",
            "mask_path: 'mask_path' and 'mask_suffix' cannot be combined. Remove",
        ),
        ("mask_min_value: 1.5", "mask_min_value: 1.5 is out of range: must be <= 1."),
        ("num_workers: -1", "num_workers: -1 is out of range: must be >= 0."),
    ],
)
def test_mistakes_of_a_dataset(faults, keys: str, message: str) -> None:
    (found,) = faults(f"datasets: [{{folder_path: photos, {keys}}}]")
    assert found.startswith(f"datasets[0].{message}") and ".." not in found.replace(
        "...", ""
    )


def test_captions_of_names_and_of_a_table_cannot_be_combined(faults) -> None:
    Path("t.tsv").write_text("a.png\ta cat")
    (found,) = faults(
        "datasets: [{folder_path: photos, captions: names, captions_file: t.tsv}]"
    )
    assert (
        found
        == "datasets[0].captions: 'names' and 'captions_file' cannot be combined. Remove one of them."
    )


def test_a_validation_set_has_the_rectangle_of_the_datasets(section) -> None:
    shape = Rectangle(width=96, height=64)
    images = "datasets: [{folder_path: photos, resolution: {width: 96, height: 64}}]"
    found = section(images, "validation: {folder_path: photos}")
    assert found.validation.dataset(found.datasets).resolution == (shape,)


def test_the_area_of_a_size_is_its_most_pixels() -> None:
    assert [area_of(64), area_of(Rectangle(width=96, height=64))] == [64 * 64, 96 * 64]


# ------------------------------------------------------------ streams


def test_a_stream_has_the_defaults_of_its_reader_and_keeps_nothing(section) -> None:
    dataset = section("datasets: [{url: a.tar}]").datasets[0]
    settings, keys = dataset.webdataset, SampleKeys()
    assert (
        dataset.url == ("a.tar",)
        and not (dataset.keeps("latents") or dataset.keeps("text"))
        and not dataset.folder_path
    )
    assert (settings.image_key, settings.label_key, settings.caption_key) == (
        keys.image,
        keys.label,
        keys.caption,
    )
    kept = section("datasets: [{url: [a.tar, b.tar], cache: latents}]").datasets[0]
    assert kept.keeps("latents") and not kept.keeps("text")
    assert section("datasets: [{folder_path: photos}]").streamed is None


def test_extensions_are_written_with_or_without_a_dot(section) -> None:
    keys = "image_key: [.PNG, png, jpg], label_key: .TXT, caption_key: text"
    settings = (
        section(f"datasets: [{{url: a.tar, webdataset: {{{keys}}}}}]")
        .datasets[0]
        .webdataset
    )
    assert (settings.image_key, settings.label_key, settings.caption_key) == (
        ("png", "jpg"),
        "txt",
        "text",
    )


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (
            "datasets: [{url: a.tar}, {folder_path: photos}]",
            "datasets[0].url: a stream has to be the only entry of 'datasets'. Write all shards as a list of 'url', or",
        ),
        (
            "datasets: [{url: a.tar, folder_path: photos}]",
            "datasets[0].folder_path: cannot be combined with 'url': a dataset is either a folder or a",
        ),
        (
            "datasets: [{url: a.tar, captions: lines}]",
            "datasets[0].captions: cannot be combined with 'url': ",
        ),
        (
            "datasets: [{url: a.tar, num_repeats: 2}]",
            "datasets[0].num_repeats: cannot be combined with 'url': ",
        ),
        (
            "datasets: [{url: a.tar, control_path: photos}]",
            "datasets[0].control_path: cannot be combined with 'url': ",
        ),
        (
            "datasets: [{url: a.tar, flip_x: true}]",
            "datasets[0].flip_x: cannot be combined with 'url': ",
        ),
        (
            "datasets: [{url: a.tar, resolution: [512, 768]}]",
            "datasets[0].resolution: a stream yields each image once",
        ),
        (
            "datasets: [{folder_path: photos, webdataset: {samples: 2}}]",
            "datasets[0].webdataset: only applies with",
        ),
        (
            "datasets: [{url: a.tar, webdataset: {image_key: []}}]",
            "datasets[0].webdataset.image_key: has 0 entries:",
        ),
        (
            "datasets: [{url: a.tar, webdataset: {label_key: .}}]",
            "datasets[0].webdataset.label_key: '.' is not a file",
        ),
        (
            "datasets: [{url: a.tar, webdataset: {imagekey: a}}]",
            "datasets[0].webdataset.imagekey: unknown key. Did yo",
        ),
        (
            "datasets: [{url: a.tar}]\ntrain: {epochs: 2, lr_scheduler: cosine}",
            "train.lr_scheduler: 'cosine' needs the number of steps, which is unknown: 2 epochs of a stream of unknown "
            "length. Set 'datasets[0].webdataset.samples', or 'train.steps' instead of epochs.",
        ),
        (
            "datasets: [{url: a.tar}]\nvalidation: {fraction: 0.1}",
            "validation.fraction: no fraction of a stream can be",
        ),
    ],
)
def test_what_does_not_go_with_a_stream_is_refused_with_the_reason(
    faults, lines: str, found: str
) -> None:
    (message,) = faults(lines)
    assert message.startswith(found)


def test_a_process_that_reads_folders_refuses_a_stream(mistakes) -> None:
    (message,) = mistakes(
        trainer("datasets: [{url: a.tar}]").replace(
            "type: sd_trainer", "type: encoding"
        )
    )
    assert message.endswith(
        "datasets[0].url: 'type: encoding' reads folders only. Give 'folder_path'."
    )


def test_a_schedule_with_a_length_needs_the_number_of_samples(section) -> None:
    cosine = "train: {epochs: 2, lr_scheduler: cosine}"
    assert not section(
        "datasets: [{url: a.tar, webdataset: {samples: 8}}]", cosine
    ).unknown_steps()
    assert section(
        "datasets: [{url: a.tar}]", "train: {epochs: 2, lr_warmup_steps: 100}"
    ).unknown_steps()


def test_the_token_is_in_no_saved_job_and_no_message(load) -> None:
    token = "a-token-of-the-user"
    given = f"{{url: a.tar, num_repeats: 2, webdataset: {{token: {token}, caption_key: {token}}}}}"
    with pytest.raises(Exception, match="cannot be combined with 'url'") as caught:
        load(trainer(f"datasets: [{given}]"))
    assert token not in str(caught.value)
    job = load(trainer(f"datasets: [{{url: a.tar, webdataset: {{token: {token}}}}}]"))
    assert (
        token not in job.unexpanded_text and "token: <redacted>" in job.unexpanded_text
    )
    names = "{image_key: png, label_key: json, caption_key: text}"
    job = load(trainer(f"datasets: [{{url: a.tar, webdataset: {names}}}]"))
    assert names in job.unexpanded_text, "they are keys, and no secrets"


@pytest.mark.parametrize(
    ("old", "new", "kinds"),
    [
        ({"url": ["a"]}, {"url": ["b"]}, {"harmless"}),
        (
            {"url": ["a"], "webdataset": {"token": "x", "samples": 1}},
            {"url": ["a"]},
            {"harmless"},
        ),
        (
            {"url": ["a"], "webdataset": {"window": 8}},
            {"url": ["a"]},
            {"changes the result"},
        ),
        ({"folder_path": "a"}, {"url": ["a"]}, {"impossible", "harmless"}),
        ({"url": ["a"]}, {"folder_path": "a"}, {"impossible", "changes the result"}),
        ({"folder_path": "a"}, {"folder_path": "b"}, {"changes the result"}),
    ],
)
def test_what_a_change_means_for_a_resume(old: dict, new: dict, kinds: set) -> None:
    """Shards may move: their names tell whether they are the same. A folder and a
    stream have no place in common."""
    before, after = (
        ImageTrainingSection.model_validate(
            {"type": "any", "datasets": [entry]}
        ).model_dump(mode="json")
        for entry in (old, new)
    )
    assert {
        change.kind for change in diff_configs(ImageTrainingSection, before, after)
    } == kinds


# ------------------------------------------------------------ validation


def test_what_is_given_and_what_is_taken_else(section) -> None:
    found = section("validation: {every: 50, fraction: 0.25}").validation
    assert (
        found.every,
        found.fraction,
        found.folder_path,
        found.timesteps,
    ) == (50, 0.25, None, 4)


def test_there_is_none_by_default(section) -> None:
    assert section().validation is None
    assert section("validation:").validation is None


def test_another_place_is_told_the_right_one(faults) -> None:
    (found,) = faults("train: {validation: {fraction: 0.2}}")
    assert found.endswith("It belongs in the process, beside 'train'.")


@needs_foreign_names
@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("{}", "validation: names no images. Give 'folder_path', or the 'fraction'"),
        (
            "{every: 10}",
            "validation: names no images. Give 'folder_path', or the 'fraction'",
        ),
        (
            "{fraction: 0.1, folder_path: photos}",
            "'folder_path' and 'fraction' cannot be combined",
        ),
        ("{fraction: 0}", "validation.fraction"),
        ("{fraction: 0.6}", "validation.fraction"),
        ("{fraction: 10}", "validation.fraction"),
        ("{fraction: 0.1, every: -1}", "validation.every"),
        ("{fraction: 0.1, timesteps: 0}", "validation.timesteps"),
        (
            "{fraction: 0.1, control_path_1: photos}",
            "validation.control_path_1: only applies with 'folder_path'",
        ),
        ("{folder_path: nowhere}", "validation.folder_path: 'nowhere' does not exist"),
        (
            "{folder_path: photos, control_path: [photos, nowhere]}",
            "control_path[1]: 'nowhere' does not exist",
        ),
        (
            "{fraction: 0.1, evry: 3}",
            "validation.evry: unknown key. Did you mean 'every'?",
        ),
    ],
)
def test_a_mistake_is_named_at_its_place(faults, given: str, fault: str) -> None:
    found = faults(f"validation: {given}")
    assert len(found) == 1, found
    assert fault in found[0]


@needs_foreign_names
def test_the_other_trainers_section_is_not_this_one(faults) -> None:
    assert (
        "not supported yet"
        in faults("train: {validation_config: {validation_items: []}}")[0]
    )


@needs_foreign_names
def test_a_folder_is_a_dataset_that_takes_the_rest_from_the_datasets(
    section, tmp_path: Path
) -> None:
    (tmp_path / "val").mkdir(exist_ok=True)
    job = section(
        "datasets:",
        "  - {folder_path: photos, is_reg: true, resolution: 32, caption_ext: no}",
        "  - {folder_path: photos, resolution: [512, 768], caption_ext: caption, num_repeats: 9, background: black,",
        "     captions_file: job.yaml, caption_prefix: drawn, default_caption: a plate, trigger_word: maya}",
        "  - {folder_path: photos, resolution: [768, 1024], default_caption: a cup, caption_dropout_rate: 0.5}",
        "validation: {folder_path: val, control_path_2: photos, control_path_1: val}",
    )
    found = job.validation.dataset(job.datasets)
    assert (found.folder_path, found.control_path) == ("val", ("val", "photos"))
    assert (found.resolution, found.caption_ext) == ((512, 768, 1024), (".caption",))
    assert (found.default_caption, found.background) == ("a plate", "black")
    assert found.trigger_word == "maya"
    assert (found.num_repeats, found.caption_dropout_rate) == (1, 0.0)
    assert (found.captions_file, found.caption_prefix) == (None, "drawn"), (
        "the file names other images"
    )


def test_pairs_of_a_validation_are_named_as_those_of_the_datasets(section) -> None:
    pairs = (
        "datasets: [{folder_path: photos, image_suffix: _end, control_suffix: _start}]"
    )
    for keys, found in (
        ("", ("_end", ("_start",), True)),
        (", control_path: photos", ("", (), False)),
    ):
        job = section(pairs, f"validation: {{folder_path: photos{keys}}}")
        own = job.validation.dataset(job.datasets)
        assert (own.image_suffix, own.control_suffix, own.control_optional) == found
