"""`train.preference` in whole jobs, and the keys that it excludes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean

import pytest

from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.rules import findings
from tests.running import lines, run_job
from toolkit.config.sections.train import (
    DISTANCE,
    HELD_OUT_MARGIN,
    HELD_OUT_RIGHT,
    MARGIN,
    RIGHT,
)
from toolkit.errors import DataErrors

ROWS = [("a", ["b"]), ("c", ["a", "b"]), ("d", [])]


@pytest.fixture
def run(
    write_job, trainer, make_pictures, tmp_path: Path, monkeypatch
) -> Callable[..., tuple[bytes, list[dict]]]:
    """Runs a job with these keys, and these of `train`, on two better images, and one
    that is compared with none; returns the LoRA and the lines of its metrics."""
    photos = make_pictures(tmp_path / "votes", "a", "b", "c", "d")
    table = photos / "votes.jsonl"
    table.write_text(
        "".join(
            json.dumps(
                {
                    "better": f"{better}.png",
                    "worse": [f"{name}.png" for name in worse],
                    "prompt": better,
                }
            )
            + "\n"
            for better, worse in ROWS
        )
    )
    monkeypatch.chdir(tmp_path)

    def run(
        folder: str,
        rows: bool = True,
        start: str | None = None,
        keys: Mapping[str, object] = {},
        **train: object,
    ) -> tuple[bytes, list[dict]]:
        section = trainer(
            photos,
            training_folder=folder,
            network={
                "type": "lora",
                "linear": 4,
                "linear_alpha": 4,
                "pretrained_lora_path": start,
            },
            train={
                "steps": 4,
                "lr": 0.01,
                "batch_size": 2,
                "max_grad_norm": 0,
                **train,
            },
        )
        section |= {
            "datasets": [{"captions_file": str(table), "resolution": 64}],
            **keys,
        }
        if not rows:
            table.write_text(json.dumps({"better": "a.png", "prompt": "a"}))
        run_job(write_job(section))
        made = tmp_path / folder / "job"
        return (made / "job.safetensors").read_bytes(), lines(made / "metrics.jsonl")

    return run


@pytest.mark.slow
def test_a_run_learns_from_pairs(run) -> None:
    """That it goes on to the same bytes: tests/faults/test_pairs.py."""
    _, rows = run("whole", preference={"beta": 500})
    paired = [row for row in rows if MARGIN in row]
    # the adapter does nothing yet
    assert paired[0][MARGIN] == paired[0][DISTANCE] == paired[0][RIGHT] == 0
    assert paired[-1][DISTANCE] > 0 and paired[-1][MARGIN] != 0


@pytest.mark.slow
def test_the_reference_may_be_a_lora(run, tmp_path: Path) -> None:
    """Starting from a file that is the reference too, the first step prefers
    neither."""
    run("first", steps=2)
    file = str(tmp_path / "first" / "job" / "job.safetensors")
    _, alone = run("alone", start=file, steps=1, preference={}, batch_size=3)
    _, beside = run(
        "beside", start=file, steps=1, preference={"reference": file}, batch_size=3
    )
    assert beside[0][DISTANCE] < 1e-4 * alone[0][DISTANCE]


def test_a_table_without_pairs_is_refused(run) -> None:
    with pytest.raises(
        DataErrors, match=r"train\.preference: no image has a worse one"
    ):
        run("none", rows=False, preference={})


@pytest.fixture
def held_out(make_pictures, tmp_path: Path) -> dict[str, object]:
    """A validation of eight pairs, and of an image that is compared with none."""
    photos = make_pictures(
        tmp_path / "others",
        *(f"{kind}{number}" for kind in "bw" for number in range(9)),
    )
    rows = [
        {"better": f"b{number}.png", "worse": f"w{number}.png", "prompt": "a"}
        for number in range(8)
    ]
    rows.append({"better": "b8.png", "prompt": "a"})
    (photos / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "folder_path": str(photos),
        "captions_file": str(photos / "pairs.jsonl"),
        "every": 2,
        "timesteps": 2,
    }


@pytest.mark.slow
def test_the_validation_says_how_many_held_out_pairs_are_right(
    run, held_out, tmp_path: Path
) -> None:
    run("job", keys={"validation": held_out}, preference={"beta": 500})
    folder = tmp_path / "job" / "job"
    first, _, last = lines(folder / "validation.jsonl")
    assert (first["validation/loss"], first[HELD_OUT_MARGIN]) == (
        pytest.approx(math.log(2)),
        0,
    )
    assert (
        last[HELD_OUT_MARGIN] != 0 and first[HELD_OUT_RIGHT] == 0 < last[HELD_OUT_RIGHT]
    )
    by_image = lines(folder / "validation_images.jsonl")[-1]["losses"]
    of_pairs = fmean(loss for losses in by_image.values() for loss in losses)
    assert len(by_image) == 8 and of_pairs == pytest.approx(last["validation/loss"])
    best = json.loads((folder / "run.json").read_text())["best"]
    assert best["loss"] == min(
        row["validation/loss"] for row in lines(folder / "validation.jsonl")
    )


@pytest.mark.parametrize(
    ("network", "train", "key"),
    [
        ("full", {}, "train.preference"),
        ("lora", {"few_step_loss": {"lora": "x.safetensors"}}, "train.few_step_loss"),
        ("lora", {"noise_levels_per_sample": 2}, "train.noise_levels_per_sample"),
        (
            "lora",
            {"assistant": "x.safetensors", "preference": {"reference": "x"}},
            "train.preference.reference",
        ),
    ],
)
def test_keys_that_exclude_it(network: str, train: dict, key: str) -> None:
    section = SdTrainerConfig(
        type="sd_trainer",
        datasets=[{"captions_file": "votes.jsonl"}],
        model={"name_or_path": "a"},
        network={"type": network},
        train={"preference": {}, **train},
    )
    errors = [one for one in findings(section) if one.severity == "error"]
    assert key in [".".join(map(str, one.key)) for one in errors]
