"""A job that trains Qwen-Image-Layered, and the keys that it takes and refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.layer_files import write_layers
from tests.running import lines, run_job
from toolkit.config import load_job
from toolkit.errors import ConfigErrors
from toolkit.extension import discover
from toolkit.files.safetensors_io import read_metadata


@pytest.fixture
def section(
    trainer: Callable[..., dict],
    layered_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., dict]:
    """A section that trains two images of unlike numbers of layers, and draws one;
    `dataset` is merged."""
    monkeypatch.chdir(tmp_path)
    for stem, count in (("a", 1), ("b", 3)):
        write_layers(tmp_path / "data", count, stem=stem)

    def made(
        dataset: dict | None = None, kwargs: dict | None = None, **changes: object
    ) -> dict:
        sample = {
            "samples": [{"prompt": "a", "ctrl_img": "data/b.png", "layers": 2}],
            **{
                "width": 64,
                "height": 64,
                "sample_steps": 1,
                "sample_every": 0,
                "format": "png",
            },
        }
        given = {
            "model": {"name_or_path": str(layered_model), "model_kwargs": kwargs or {}},
            "datasets": [
                {
                    "folder_path": "data",
                    "resolution": 64,
                    "layers_suffix": "_layer",
                    **(dataset or {}),
                }
            ],
            "sample": sample,
            **changes,
        }
        train = {
            "steps": 2,
            "batch_size": 2,
            "disable_sampling": False,
            "skip_first_sample": True,
        }
        return trainer(train=train | given.pop("train", {}), **given)

    return made


@pytest.mark.slow
def test_a_job_trains_and_draws_layers(section, write_job: Callable[..., Path]) -> None:
    run_job(write_job(section(kwargs={"composite_target": False}), name="layers"))
    folder = Path("output/layers")
    assert len(lines(folder / "metrics.jsonl")) == 2
    metadata = read_metadata(folder / "layers.safetensors")
    assert metadata["modelspec.architecture"] == "Qwen-Image-Layered/lora"
    row = Image.open(folder / "samples" / "000000002_0.png")
    assert (row.mode, row.size) == ("RGBA", (2 * 64, 64))
    drawn = [
        Image.open(folder / "samples" / "layers" / f"000000002_0_layer{index}.png")
        for index in range(2)
    ]
    width = row.width // 2
    for index, layer in enumerate(drawn):
        assert (
            layer.tobytes()
            == row.crop((index * width, 0, (index + 1) * width, row.height)).tobytes()
        )


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            {"control_path": "data"},
            "datasets[0].control_path: does not apply to Qwen-Image-Layered: the image itself is the only control "
            "image. Remove it.",
        ),
        (
            {"alpha_mask": True},
            "datasets[0].alpha_mask: does not apply to Qwen-Image-Layered: a mask would be that of one image, and the "
            "target is several. Remove it.",
        ),
        (
            {"background": "white"},
            "datasets[0].background: does not apply to Qwen-Image-Layered: layers are trained with their opacity. "
            "Remove it.",
        ),
        (
            {"layers_suffix": ""},
            "datasets[0]: Qwen-Image-Layered learns the layers of each image. Give 'layers_suffix: _layer'.",
        ),
    ],
)
def test_keys_that_do_not_apply_are_refused(
    section, write_job, dataset: dict, message: str
) -> None:
    with pytest.raises(ConfigErrors) as raised:
        run_job(write_job(section(dataset)))
    found = [
        f"{error.place}: {error.message}".partition("process[0].")[2]
        for error in raised.value.errors
    ]
    assert found == [message]


def test_a_sample_needs_the_image_that_it_takes_apart(section, write_job) -> None:
    with pytest.raises(ConfigErrors) as raised:
        run_job(write_job(section(sample={"prompts": ["a"]})))
    assert [error.message for error in raised.value.errors] == [
        "is required: Qwen-Image-Layered takes an image apart into layers. Give that image."
    ]


def test_other_models_take_no_layers(section, trainer, write_job) -> None:
    datasets = [{"folder_path": "data", "resolution": 64, "layers_suffix": "_layer"}]
    with pytest.raises(ConfigErrors) as raised:
        run_job(write_job(trainer(datasets=datasets)))
    assert [error.message for error in raised.value.errors] == [
        "Qwen-Image-Edit-2509 generates no layers. Remove it."
    ]


def test_layers_of_other_models_samples_have_no_effect(
    trainer, write_job, tmp_path: Path
) -> None:
    """One layer is musubi-tuner's `--f 1`, an image."""
    prompts = ["a --f 1", "a --f 3", {"prompt": "a", "layers": 2}]
    samples = [
        {"prompt": prompt} if isinstance(prompt, str) else prompt for prompt in prompts
    ]
    sample = {"samples": samples, "layers": 5}
    job = load_job(write_job(trainer(tmp_path, sample=sample)), discover().find_config)
    said = [
        one.partition("process[0].")[2].partition(": ")
        for one in job.warnings
        if "generates no layers" in one
    ]
    assert {place for place, *_ in said} == {
        "sample.layers",
        "sample.samples[1].prompt.--f",
        "sample.samples[2].layers",
    }
    assert {message for *_, message in said} == {
        "has no effect: Qwen-Image-Edit-2509 generates no layers."
    }


@pytest.mark.parametrize(
    ("changes", "place", "message"),
    [],
)
def test_what_takes_one_target_for_granted_is_refused(
    section, write_job, changes: dict, place: str, message: str
):
    with pytest.raises(ConfigErrors) as raised:
        load_job(write_job(section(**changes)), discover().find_config)
    found = [
        f"{error.place}: {error.message}".partition("process[0].")[2]
        for error in raised.value.errors
    ]
    assert f"{place}: does not apply to Qwen-Image-Layered: {message}" in found


def test_control_sizes_do_not_apply(section, write_job) -> None:
    job = load_job(
        write_job(section(kwargs={"match_target_res": True})), discover().find_config
    )
    assert [
        one.partition("process[0].")[2] for one in job.warnings if "match_target" in one
    ] == [
        "model.model_kwargs.match_target_res: has no effect: Qwen-Image-Layered sees the image in its own size."
    ]


@pytest.mark.slow
def test_held_out_images_are_measured_with_their_layers(
    section, write_job, tmp_path: Path
) -> None:
    """As in the training: more layers, another loss; and a folder of its own has them
    beside its images."""
    write_layers(tmp_path / "held", 2, stem="c")
    validation = {"folder_path": "held", "every": 2, "timesteps": 1}
    run_job(
        write_job(
            section(validation=validation, train={"disable_sampling": True}),
            name="held_out",
        )
    )
    measured = lines(Path("output/held_out/validation.jsonl"))
    assert [line["step"] for line in measured] == [0, 2]
    write_layers(tmp_path / "held", 1, stem="c")
    (tmp_path / "held" / "c_layer1.png").unlink()
    changed = {"disable_sampling": True, "steps": 1}
    run_job(write_job(section(validation=validation, train=changed), name="fewer"))
    fewer = lines(Path("output/fewer/validation.jsonl"))
    assert fewer[0]["validation/loss"] != measured[0]["validation/loss"]
