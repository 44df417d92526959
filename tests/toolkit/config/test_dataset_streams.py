"""A stream of shards as the only entry of `datasets`."""

from __future__ import annotations

import pytest

from tests.toolkit.config.conftest import trainer
from toolkit.config.sections import ImageTrainingSection
from toolkit.data.webdataset import SampleKeys
from toolkit.train.config_diff import diff_configs


def test_a_stream_has_the_defaults_of_its_reader_and_keeps_nothing(section) -> None:
    dataset = section("datasets: [{url: a.tar}]").datasets[0]
    settings, keys = dataset.webdataset, SampleKeys()
    assert dataset.url == ("a.tar",) and not dataset.cache_latents_to_disk and not dataset.folder_path
    assert (settings.image_key, settings.label_key, settings.caption_key) == (keys.image, keys.label, keys.caption)
    assert section("datasets: [{url: [a.tar, b.tar], cache_latents_to_disk: true}]").datasets[0].cache_latents_to_disk
    assert section("datasets: [{folder_path: photos}]").datasets[0].cache_latents_to_disk
    assert section("datasets: [{folder_path: photos}]").streamed is None


def test_extensions_are_written_with_or_without_a_dot(section) -> None:
    keys = "image_key: [.PNG, png, jpg], label_key: .TXT, caption_key: text"
    settings = section(f"datasets: [{{url: a.tar, webdataset: {{{keys}}}}}]").datasets[0].webdataset
    assert (settings.image_key, settings.label_key, settings.caption_key) == (("png", "jpg"), "txt", "text")


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("datasets: [{url: a.tar}, {folder_path: photos}]", "datasets[0].url: a stream has to be the only entry of"),
        (
            "datasets: [{url: a.tar, folder_path: photos}]",
            "datasets[0].folder_path: does not work with 'url': a dataset is a folder or a stream. Remove it.",
        ),
        (
            "datasets: [{url: a.tar, num_repeats: 2}]",
            "datasets[0].num_repeats: does not work with 'url': a stream is re",
        ),
        (
            "datasets: [{url: a.tar, control_path: photos}]",
            "datasets[0].control_path: does not work with 'url': a strea",
        ),
        ("datasets: [{url: a.tar, flip_x: true}]", "datasets[0].flip_x: does not work with 'url': a stream gives each"),
        ("datasets: [{url: a.tar, resolution: [512, 768]}]", "datasets[0].resolution: a stream gives each image once"),
        ("datasets: [{folder_path: photos, webdataset: {samples: 2}}]", "datasets[0].webdataset: only applies with"),
        ("datasets: [{url: a.tar, webdataset: {image_key: []}}]", "datasets[0].webdataset.image_key: has 0 entries:"),
        (
            "datasets: [{url: a.tar, webdataset: {label_key: .}}]",
            "datasets[0].webdataset.label_key: '.' is not a file exten",
        ),
        (
            "datasets: [{url: a.tar, webdataset: {imagekey: a}}]",
            "datasets[0].webdataset.imagekey: unknown key. Did you",
        ),
        (
            "datasets: [{url: a.tar}]\ntrain: {epochs: 2, lr_scheduler: cosine}",
            "train.lr_scheduler: 'cosine' needs the number of steps, and 2 epochs of a stream of unknown length do "
            "not give it. Set 'datasets[0].webdataset.samples', or 'train.steps' instead of epochs.",
        ),
        (
            "datasets: [{url: a.tar, webdataset: {readers: 2}}]\ntrain: {batch_size: 2, gradient_accumulation: 3}",
            "datasets[0].webdataset.readers: 2: the 6 images of a step (train.batch_size x gradient_accumulation) "
            "cannot be split into 4 equal micro-batches. Change one of them.",
        ),
        (
            "datasets: [{url: a.tar, webdataset: {readers: 2}}]\ntrain: {epochs: 2, batch_size: 2}",
            "datasets[0].webdataset.readers: above 1, and the end of the stream is not known. Set 'webdataset.samples'",
        ),
        (
            "datasets: [{url: a.tar}]\nvalidation: {fraction: 0.1}",
            "validation.fraction: a stream has no share to hold out. Set 'folder_path' to images that are not in",
        ),
    ],
)
def test_what_does_not_go_with_a_stream_is_refused_with_the_reason(faults, lines: str, found: str) -> None:
    (message,) = faults(lines)
    assert message.startswith(found)


def test_a_process_that_reads_folders_refuses_a_stream(mistakes) -> None:
    (message,) = mistakes(trainer("datasets: [{url: a.tar}]").replace("type: sd_trainer", "type: cache"))
    assert message.endswith("datasets[0].url: 'type: cache' reads folders only. Give 'folder_path'.")


def test_a_schedule_with_a_length_needs_the_number_of_samples(section) -> None:
    cosine = "train: {epochs: 2, lr_scheduler: cosine}"
    assert not section("datasets: [{url: a.tar, webdataset: {samples: 8}}]", cosine).unknown_steps()
    assert section("datasets: [{url: a.tar}]", "train: {epochs: 2, lr_warmup_steps: 100}").unknown_steps()


def test_the_token_is_in_no_saved_job_and_no_message(load) -> None:
    token = "a-token-of-the-user"
    given = f"{{url: a.tar, num_repeats: 2, webdataset: {{token: {token}, caption_key: {token}}}}}"
    with pytest.raises(Exception, match="does not work with 'url'") as caught:
        load(trainer(f"datasets: [{given}]"))
    assert token not in str(caught.value)
    job = load(trainer(f"datasets: [{{url: a.tar, webdataset: {{token: {token}}}}}]"))
    assert token not in job.unexpanded_text and "token: <redacted>" in job.unexpanded_text
    names = "{image_key: png, label_key: json, caption_key: text}"
    job = load(trainer(f"datasets: [{{url: a.tar, webdataset: {names}}}]"))
    assert names in job.unexpanded_text, "they are keys, and no secrets"


@pytest.mark.parametrize(
    ("old", "new", "kinds"),
    [
        ({"url": ["a"]}, {"url": ["b"]}, {"harmless"}),
        ({"url": ["a"], "webdataset": {"token": "x", "samples": 1}}, {"url": ["a"]}, {"harmless"}),
        ({"url": ["a"], "webdataset": {"window": 8}}, {"url": ["a"]}, {"changes the result"}),
        ({"folder_path": "a"}, {"url": ["a"]}, {"impossible", "harmless"}),
        ({"url": ["a"]}, {"folder_path": "a"}, {"impossible", "changes the result"}),
        ({"folder_path": "a"}, {"folder_path": "b"}, {"changes the result"}),
    ],
)
def test_what_a_change_means_for_a_resume(old: dict, new: dict, kinds: set) -> None:
    """Shards may move: their names tell whether they are the same. A folder and a stream have no place in common."""
    before, after = (
        ImageTrainingSection.model_validate({"type": "any", "datasets": [entry]}).model_dump(mode="json")
        for entry in (old, new)
    )
    assert {change.kind for change in diff_configs(ImageTrainingSection, before, after)} == kinds
