"""A job that trains Qwen-Image-Layered, and the keys that it takes and refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.layer_files import write_layers
from tests.running import lines, run_job
from toolkit.errors import ConfigErrors
from toolkit.files.safetensors_io import read_metadata
from toolkit.models.tiny import TinySpec, write_tiny_model


@pytest.fixture
def section(trainer: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """A section that trains two images of unlike numbers of layers, and draws one; `dataset` is merged."""
    monkeypatch.chdir(tmp_path)
    write_tiny_model(tmp_path / "model", TinySpec(arch="qwen_image_layered"))
    for stem, count in (("a", 1), ("b", 3)):
        write_layers(tmp_path / "data", count, stem=stem)

    def made(dataset: dict | None = None, kwargs: dict | None = None, **changes: object) -> dict:
        sample = {
            "samples": [{"prompt": "a", "ctrl_img": "data/b.png", "layers": 2}],
            **{"width": 64, "height": 64, "sample_steps": 1, "sample_every": 0, "format": "png"},
        }
        given = {
            "model": {"name_or_path": "model", "model_kwargs": kwargs or {}},
            "datasets": [{"folder_path": "data", "resolution": 64, "layers_suffix": "_layer", **(dataset or {})}],
            "sample": sample,
            **changes,
        }
        train = {"steps": 4, "batch_size": 2, "disable_sampling": False, "skip_first_sample": True}
        return trainer(train=train | given.pop("train", {}), **given)

    return made


@pytest.mark.parametrize("composite", [True, False])
def test_a_job_trains_and_draws_layers(section, write_job: Callable[..., Path], composite: bool) -> None:
    run_job(write_job(section(kwargs={"composite_target": composite}), name="layers"))
    folder = Path("output/layers")
    assert len(lines(folder / "metrics.jsonl")) == 4
    metadata = read_metadata(folder / "layers.safetensors")
    assert metadata["modelspec.architecture"] == "Qwen-Image-Layered/lora"
    row = Image.open(folder / "samples" / "000000004_0.png")
    assert (row.mode, row.size) == ("RGBA", (2 * 64, 64))
    drawn = [Image.open(folder / "samples" / "layers" / f"000000004_0_layer{index}.png") for index in range(2)]
    width = row.width // 2
    for index, layer in enumerate(drawn):
        assert layer.tobytes() == row.crop((index * width, 0, (index + 1) * width, row.height)).tobytes()


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
            "datasets[0]: Qwen-Image-Layered learns the layers of each image. Give 'layers_path', or "
            "'layers_suffix: _layer'.",
        ),
    ],
)
def test_keys_that_do_not_apply_are_refused(section, write_job, dataset: dict, message: str) -> None:
    with pytest.raises(ConfigErrors) as raised:
        run_job(write_job(section(dataset)))
    found = [f"{error.place}: {error.message}".partition("process[0].")[2] for error in raised.value.errors]
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
    assert [error.message for error in raised.value.errors] == ["Qwen-Image-Edit-2509 generates no layers. Remove it."]
