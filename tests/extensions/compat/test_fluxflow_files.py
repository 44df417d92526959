"""The guide's files, from a run that is only said to have happened."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from extensions.compat.fluxflow_files import FluxflowFiles, prefix_of
from tests.running import lines
from toolkit.contracts.training import StepResult
from toolkit.train.run import Run, Sampled, Saved


def result(step: int, epoch: int = 0, **more: object) -> StepResult:
    values = {
        "loss": 0.5,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "samples": step,
        "step_s": 0.25,
        "data_s": 0.0,
    } | more
    return StepResult(step=step, epoch=epoch, **values)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of four steps named `warmup` in `job/warmup`, three batches an epoch, two
    of them a step."""
    folder = tmp_path / "job" / "warmup"
    folder.mkdir(parents=True)
    roles = dict.fromkeys(("vae", "discriminator"))
    return Run("warmup", folder, 4, 2, 1, roles, batches_per_epoch=3)  # type: ignore[arg-type]


def begun(run: Run, place: str = "step") -> FluxflowFiles:
    files = FluxflowFiles(place)
    files.on_start(run)
    return files


def test_each_step_is_a_line_and_what_is_not_finite_is_null(run: Run) -> None:
    files = begun(run)
    metrics = {"loss_recon": math.nan, "loss_kl": 1.5}
    files.on_metrics(
        run,
        result(
            3,
            1,
            extra_metrics=metrics,
            lr_by_group={"vae": 1e-3, "discriminator": 2e-3, "x/y": 1.0},
        ),
    )
    files.on_end(run, True)
    (line,) = lines(run.folder.parent / "graph" / "training_metrics_warmup.jsonl")
    assert (
        line["step"],
        line["epoch"],
        line["batch"],
        line["seconds"],
        line["eta_s"],
    ) == (3, 1, 3, 0.25, 0.2)
    assert (line["loss_recon"], line["loss_kl"], line["lr/discriminator"]) == (
        None,
        1.5,
        2e-3,
    )


def test_a_resume_removes_the_lines_of_steps_that_are_repeated(run: Run) -> None:
    first = begun(run, "only")
    for step in (1, 2, 3):
        first.on_metrics(run, result(step))
    first.on_error(run, RuntimeError())
    run.state.step = 1
    again = begun(run, "only")
    again.on_metrics(run, result(2))
    again.on_end(run, True)
    assert [
        line["step"]
        for line in lines(run.folder.parent / "graph" / "training_metrics.jsonl")
    ] == [1, 2]


def test_a_save_writes_its_place_and_the_rates_of_its_step(run: Run) -> None:
    files = begun(run)
    files.on_metrics(
        run, result(2, 1, lr_by_group={"vae": 1e-4, "discriminator": 2e-4})
    )
    # while the save is written
    files.on_metrics(run, result(3, 2, lr_by_group={"vae": 9.0, "discriminator": 9.0}))
    files.on_save(run, Saved(2, 1, (run.folder / "warmup_000000002",)))
    folder = run.folder.parent
    assert json.loads((folder / "training_state.json").read_text()) == {
        "step_name": "warmup", "epoch": 1, "batch": 1, "global_step": 2,
    }  # fmt: skip
    assert json.loads((folder / "lr_sav.json").read_text()) == {
        "vae": 1e-4,
        "discriminator": 2e-4,
    }
    assert not list(folder.glob("*.safetensors"))


def test_a_single_role_has_the_rate_of_the_run(run: Run) -> None:
    run.roles = {"vae": None}  # type: ignore[dict-item]
    files = begun(run)
    files.on_metrics(run, result(1))
    files.on_save(run, Saved(1, 0, ()))
    assert json.loads((run.folder.parent / "lr_sav.json").read_text()) == {"vae": 1e-3}


def model_in(folder: Path) -> dict[str, torch.Tensor]:
    """Files of a model's folder, and the tensors under the names that they get."""
    weights = {name: torch.randn(3, size) for name, size in {"a": 2, "b": 5}.items()}
    for name in (
        "diffusion_pytorch_model",
        "discriminator",
        "transformer/model-00001-of-00002",
        "vae/spade",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {key: value + len(name) for key, value in weights.items()},
            folder / f"{name}.safetensors",
        )
    prefixes = {"vae": 23, "discriminator": 13, "transformer": 32, "vae.spade": 9}
    return {
        f"{prefix}.{key}": value + add
        for prefix, add in prefixes.items()
        for key, value in weights.items()
    }


@pytest.mark.parametrize(("place", "names"), [("step", 1), ("last", 2), ("only", 2)])
def test_the_end_writes_all_weights_as_one_file(
    run: Run, place: str, names: int
) -> None:
    expected = model_in(run.folder / "warmup")
    begun(run, place).on_save(run, Saved(4, 2, (run.folder / "warmup",)))
    folder = run.folder.parent
    files = sorted(folder.glob("*.safetensors"))
    assert [file.name for file in files] == [
        "flxflow_final.safetensors",
        "flxflow_step_warmup_final.safetensors",
    ][-names:]
    with safe_open(files[0], "pt") as found:
        assert set(found.keys()) == expected.keys()
        assert all(
            torch.equal(found.get_tensor(name), value)
            for name, value in expected.items()
        )
        said = json.loads(found.metadata()["parts"])
        assert said == {
            "folder": "warmup/warmup",
            "parts": ["discriminator", "transformer", "vae"],
        }
        assert found.metadata()["step"] == "4"


def test_half_a_file_of_a_run_that_was_killed_is_removed(run: Run) -> None:
    folder = run.folder.parent
    kept = {"flxflow_final.safetensors", ".notes.tmp", "warmup"}
    for name in (
        *kept - {"warmup"},
        ".flxflow_step_warmup_final.safetensors.0a1b2c3d.tmp",
    ):
        (folder / name).touch()
    begun(run).on_end(run, False)
    assert {path.name for path in folder.iterdir()} == kept | {"graph"}


@pytest.mark.parametrize(
    ("file", "prefix"),
    [
        ("diffusion_pytorch_model.safetensors", "vae."),
        ("diffusion_pytorch_model-00002-of-00003.safetensors", "vae."),
        ("text_encoder/model.safetensors", "text_encoder."),
        ("vae/spade.safetensors", "vae.spade."),
        ("discriminator.safetensors", "discriminator."),
    ],
)
def test_parts_go_by_their_folder_and_file(file: str, prefix: str) -> None:
    assert prefix_of(Path(file)) == prefix


@pytest.mark.parametrize("count", [1, 2])
def test_samples_have_the_guides_names(run: Run, count: int) -> None:
    files = begun(run)
    names = [f"000000002_{index}.png" for index in range(count)]
    (run.folder / "samples").mkdir()
    for name in names:
        (run.folder / "samples" / name).write_bytes(name.encode())
    details = {"step": 2, "epoch": 1, "files": names}
    files.on_sample(run, Sampled.of(run.folder, details))
    found = {
        path.name: path.read_bytes().decode()
        for path in (run.folder.parent / "samples").iterdir()
    }
    stem = "sample_warmup_epoch_1_batch_1"
    assert found == (
        {f"{stem}.png": names[0]}
        if count == 1
        else {f"{stem}_{i}.png": names[i] for i in range(count)}
    )
