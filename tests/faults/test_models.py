"""Whole jobs, started as a user starts them, whose model is another one, not there, or
not complete.

tests/toolkit/config/sections/test_model_files.py has every such name, index, part and
damage.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.light_start import FORBID
from tests.model_folders import NO_WEIGHTS, part_files, write_cached
from tests.small_hub import Hub, small_hub
from toolkit.models.qwen_image.family import FAMILY

pytestmark = pytest.mark.slow

NAME = "someone/model"
LOOK = ("--dry-run",)


@pytest.fixture
def refused(
    run_py, write_job, trainer, make_pictures, tmp_path: Path
) -> Callable[..., str]:
    """The one line of a job that is refused, which leaves nothing behind; HF_HOME is
    `home`."""
    make_pictures(tmp_path / "data", "a")

    def refused(
        name: str,
        *flags: str,
        kind: str = "sd_trainer",
        env: dict | None = None,
        **keys: object,
    ) -> str:
        section = trainer(tmp_path / "data", model={"name_or_path": name, **keys}) | {
            "type": kind
        }
        settings = {
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        result = run_py(
            write_job(section),
            *flags,
            env=settings | {"HF_HUB_OFFLINE": "1"} | (env or {}),
        )
        lines = [
            line
            for line in result.stderr.splitlines()
            if not line.startswith("warning: ")
        ]
        assert (result.returncode, len(lines)) == (2, 1), result.stderr
        assert "Traceback" not in result.stdout + result.stderr
        assert not list((tmp_path / "output").rglob("*.yaml")) and not list(
            (tmp_path / "output").rglob("*.safetensors")
        )
        return lines[0]

    return refused


@pytest.mark.parametrize(
    ("flags", "kind"), [(LOOK, "sd_trainer"), ((), "cache")], ids=["dry run", "run"]
)
def test_a_dry_run_and_a_run_refuse_a_cached_model_of_another_family_without_a_connection(
    refused, tmp_path: Path, flags: tuple, kind: str
) -> None:
    """Not offline: nothing forbids the program to ask, but it need not."""
    write_cached(tmp_path / "home", NAME, "StableDiffusion3Pipeline")
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(FORBID)
    watched = {"PYTHONPATH": str(site)} if flags else {}
    no_hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    line = refused(NAME, *flags, kind=kind, env=watched | no_hub)
    assert (
        f"model.name_or_path: '{NAME}' is another model: " in line
        and "'StableDiffusion3Pipeline'" in line
    )
    assert line.startswith(str(tmp_path / "job.yaml:1:"))


def test_a_missing_part(refused, tmp_path: Path) -> None:
    snapshot = write_cached(tmp_path / "home", NAME, without="scheduler", listed=True)
    assert f"'{NAME}': scheduler/ is missing in {snapshot}. " in refused(
        NAME, env={"HF_HUB_OFFLINE": "0"}
    )


def test_a_cached_model_of_ours_trains_offline_by_its_id(
    run_py, write_job, trainer, make_pictures, tiny_model: Path, tmp_path: Path
) -> None:
    snapshot = write_cached(tmp_path / "home", NAME)
    shutil.rmtree(snapshot)
    shutil.copytree(tiny_model, snapshot)
    model = {"name_or_path": NAME, "model_kwargs": {"match_target_res": True}}
    section = trainer(make_pictures(tmp_path / "data", "a"), model=model)
    result = run_py(
        write_job(section),
        env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "output" / "job" / "job.safetensors").is_file()


# ------------------------------------------------------------ with a hub that can be
# asked


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub whose only model is of another family."""
    files = {
        f"{part}/{file}": b"{}" for part in FAMILY.parts for file in part_files(part)
    }
    files["model_index.json"] = b'{"_class_name": "FluxPipeline"}'
    files |= {f"{part}/model.safetensors": NO_WEIGHTS for part in FAMILY.weight_parts}
    with small_hub(files, NAME) as server:
        yield server


def test_of_another_family_nothing_but_the_index_is_fetched(
    refused, tmp_path: Path, hub: Hub
) -> None:
    line = refused(NAME, env={"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url})
    assert f"model.name_or_path: '{NAME}' is another model: " in line
    assert {path.rsplit("/", 1)[1] for path in hub.asked if "/resolve/" in path} == {
        "model_index.json"
    }
    # Now the dry run knows it as well.
    assert "is another model" in refused(NAME, *LOOK)


def test_a_dry_run_asks_no_hub_and_says_what_it_does_not_know(
    run_py, write_job, trainer, make_pictures, tmp_path: Path, hub: Hub
) -> None:
    section = trainer(
        make_pictures(tmp_path / "data", "a"), model={"name_or_path": NAME}
    )
    settings = {
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
    }
    result = run_py(write_job(section), *LOOK, env=settings)
    assert result.returncode == 0, result.stderr
    assert f"{NAME} is not on this disk, so its family is not known" in result.stdout
    assert hub.asked == [] and not (tmp_path / "home").exists()


# ------------------------------------------------------------ a folder that is damaged


def test_a_text_encoder_without_a_weight_ends_the_run(
    run_py, write_job, trainer, make_pictures, tiny_model: Path, tmp_path: Path
) -> None:
    """It would be trained on at random;
    `tests/toolkit/models/qwen_image/test_loading.py` has the other parts."""
    part = shutil.copytree(tiny_model, tmp_path / "mine") / "text_encoder"
    weights = load_file(part / "model.safetensors")
    name = max(weights)
    save_file(
        {key: tensor for key, tensor in weights.items() if key != name},
        part / "model.safetensors",
    )
    section = trainer(
        make_pictures(tmp_path / "data", "a"),
        model={"name_or_path": str(tmp_path / "mine")},
    )
    result = run_py(write_job(section))
    assert result.returncode == 1
    [line] = [
        line for line in result.stderr.splitlines() if not line.startswith("warning: ")
    ]
    assert f"{part}: missing weights: " in line and name.rpartition(".")[2] in line
    assert not list((tmp_path / "output" / "job").glob("*.safetensors"))
