import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.network_files import save_network
from toolkit.errors import RunError
from toolkit.files.run_files import final_files, step_stem
from toolkit.files.writing import atomic_write_dir
from toolkit.networks.save import is_finite, remove_old_step_files, weights_digest

WEIGHTS = {
    "b.weight": torch.linspace(-1, 1, 12).reshape(3, 4),
    "a.alpha": torch.tensor(4.0),
}


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_file_holds_the_weights_in_the_asked_dtype(
    tmp_path: Path, dtype: str
) -> None:
    path = tmp_path / "lora.safetensors"
    save_network(path, WEIGHTS, dtype, {})
    stored = load_file(path)
    assert stored.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert torch.equal(stored[name], tensor.to(getattr(torch, dtype)))


def test_the_header_has_the_metadata_and_a_digest_of_what_is_in_the_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "lora.safetensors"
    save_network(path, WEIGHTS, "bfloat16", {"rank": "4"})
    assert metadata_of(path) == {
        "format": "pt",
        "rank": "4",
        "sha256": weights_digest(load_file(path)),
    }


def test_the_digest_depends_on_names_values_shapes_and_dtypes_not_on_order() -> None:
    other = dict(reversed(WEIGHTS.items()))
    assert weights_digest(other) == weights_digest(WEIGHTS)
    changed = [
        {"c.weight": WEIGHTS["b.weight"], "a.alpha": WEIGHTS["a.alpha"]},
        {**WEIGHTS, "a.alpha": torch.tensor(5.0)},
        {**WEIGHTS, "b.weight": WEIGHTS["b.weight"].reshape(4, 3)},
        {**WEIGHTS, "b.weight": WEIGHTS["b.weight"].view(torch.int32)},
    ]
    assert len({weights_digest(weights) for weights in [WEIGHTS, *changed]}) == 5


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(float("nan"), "float32"), (float("inf"), "bfloat16"), (1e6, "float16")],
)
def test_weights_that_are_not_finite_in_the_file_leave_no_file(
    tmp_path: Path, value: float, dtype: str
) -> None:
    path = tmp_path / "lora.safetensors"
    with pytest.raises(RunError, match=r"b\.weight .* not finite"):
        save_network(
            path, {**WEIGHTS, "b.weight": torch.tensor([1.0, value])}, dtype, {}
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 7, 64, 1001])
def test_one_number_that_is_not_finite_is_found_wherever_it_is(
    dtype: torch.dtype, count: int
) -> None:
    numbers = torch.linspace(-60000, 60000, count).to(dtype)
    assert (
        is_finite(numbers)
        and is_finite(numbers[:0])
        and is_finite(numbers.reshape(1, -1))
    )
    for value in (float("nan"), float("inf"), float("-inf")):
        for place in (0, count // 2, count - 1):
            broken = numbers.clone()
            broken[place] = value
            assert not is_finite(broken), (value, place)


def test_a_file_that_reads_back_differently_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.networks import save

    def bad_disk(tensors, path, metadata):
        save_file(
            {name: tensor + 1 for name, tensor in tensors.items()}, path, metadata
        )

    path = tmp_path / "lora.safetensors"
    save_network(path, WEIGHTS, "float32", {"which": "old"})
    save_file = save.save_file
    monkeypatch.setattr(save, "save_file", bad_disk)
    with pytest.raises(RunError, match="reads back differently"):
        save_network(path, WEIGHTS, "float32", {"which": "new"})
    assert metadata_of(path)["which"] == "old" and len(list(tmp_path.iterdir())) == 1


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def test_the_newest_step_files_are_kept_by_number_not_by_time(tmp_path: Path) -> None:
    def path(step: int) -> Path:
        return tmp_path / f"{step_stem('job', step)}.safetensors"

    # the highest step has the oldest time
    for time, step in enumerate([1000000000, 900, 40, 30]):
        path(step).touch()
        os.utime(path(step), (time, time))
    deleted = remove_old_step_files(tmp_path, "job", keep=2)
    assert deleted == [path(30), path(40)]
    assert sorted(tmp_path.iterdir()) == [path(900), path(1000000000)]


def test_the_raw_weights_go_with_their_step(tmp_path: Path) -> None:
    endings = ("", "_raw", "_lora")
    touch(
        tmp_path,
        *(f"job_000000001{ending}.safetensors" for ending in endings),
        "job_000000002.safetensors",
    )
    remove_old_step_files(tmp_path, "job", keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["job_000000002.safetensors"]


def test_only_this_jobs_step_files_are_touched(tmp_path: Path) -> None:
    name = "a.b+c(1)[x]*"
    others = (
        "aXb+c(1)[x]*_000000001.safetensors",
        f"{name}.safetensors",
        f"my_{name}_000000001.safetensors",
    )
    touch(
        tmp_path,
        *others,
        f"{name}_000000001.safetensors",
        f"{name}_000000002.safetensors",
    )
    assert [path.name for path in remove_old_step_files(tmp_path, name, keep=1)] == [
        f"{name}_000000001.safetensors"
    ]
    assert {path.name for path in tmp_path.iterdir()} == {
        *others,
        f"{name}_000000002.safetensors",
    }


def model_folder(folder: Path, name: str) -> None:
    (folder / name / "transformer").mkdir(parents=True)
    (folder / name / "model_index.json").touch()
    (folder / name / "transformer" / "weights").touch()


def test_model_folders_are_step_files_too_and_other_folders_are_not(
    tmp_path: Path,
) -> None:
    for name in ("job_000000001", "job_000000001_raw", "job_000000002", "job"):
        model_folder(tmp_path, name)
    (tmp_path / "job_000000000").mkdir()  # such as the run of another process
    (tmp_path / "job_000000000" / "job.safetensors").touch()
    assert [path.name for path in final_files(tmp_path, "job")] == ["job"]
    with atomic_write_dir(tmp_path / "job_000000000_raw") as folder:
        (folder / "model_index.json").touch()
    (tmp_path / "job_000000000_raw" / "notes.txt").touch()  # somebody's
    removed = remove_old_step_files(tmp_path, "job", keep=1)
    assert [path.name for path in removed] == ["job_000000001", "job_000000001_raw"]
    assert {path.name for path in tmp_path.iterdir()} >= {
        "job",
        "job_000000000",
        "job_000000002",
    }
    assert (tmp_path / "job_000000000_raw" / "notes.txt").exists()


def test_zero_keeps_all(tmp_path: Path) -> None:
    touch(tmp_path, "job_000000001.safetensors", "job_000000002.safetensors")
    assert remove_old_step_files(tmp_path, "job", keep=0) == []
    assert len(list(tmp_path.iterdir())) == 2
