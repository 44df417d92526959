"""`run.py influence`: what a short run's images are measured against, what it costs,
what is written and read again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional

from extensions.tools.influence.gradients import (
    NORMAL,
    deviations,
    influence_on,
    influence_on_others,
    medians,
    sketch,
)
from extensions.tools.influence.process import NOT_FOUND, ranked
from extensions.tools.shared.findings import CHECKS
from extensions.tools.shared.suspects import FILE, read_suspects, suspects_text
from jobs.dry_run import plan_job
from tests.running import run_job, run_tool, section_of
from toolkit.config import load_job
from toolkit.errors import ConfigErrors, RunError
from toolkit.extension import discover

NAMES = "abcdefghijkl"


def trained(write_job, trainer, images: str, **keys: object) -> Path:
    """A job on these images, trained for two steps; its file."""
    section = trainer(
        images,
        train={"steps": 2, "lr": 0.05},
        save={"dtype": "float32", "save_every": 1},
        **keys,
    )
    section["train"]["disable_sampling"] = True
    job = write_job(section, name="my_char")
    run_job(job)
    return job


@pytest.mark.slow
def test_a_run_is_measured_within_an_epoch_and_its_suspects_are_known_to_lint(
    write_job,
    trainer,
    make_pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
) -> None:
    monkeypatch.chdir(tmp_path)
    images = make_pictures(tmp_path / "images", *NAMES)
    job = trained(
        write_job, trainer, images, validation={"fraction": 0.2, "timesteps": 1}
    )
    run = tmp_path / "output" / "my_char"
    plan = section_of("influence", [run]).measurement()
    assert (len(plan.images), len(plan.validation), plan.passes, plan.uses) == (
        10,
        0,
        10,
        10,
    )
    plan = section_of("influence", [run, "--epochs", "2.6"]).measurement()
    assert (len(plan.validation), plan.passes) == (2, 24)
    assert [(each.file.step, each.level) for each in plan.rounds] == [
        (1, 0.8),
        (2, 0.8),
    ]
    assert any("this is 2.4 epochs" in line for line in plan.notes())
    (dry,) = plan_job(
        load_job(
            write_job({"type": "influence", "run": str(run)}), discover().find_config
        )
    ).processes
    assert (
        "10 passes (one image forward and backward); an epoch of the run has 10"
        in dry.notes
    )

    run_tool("influence", [run, "--threshold", "0.01", "--reference", "validation"])
    found = json.loads((run / "influence" / "influence.json").read_text())
    assert (
        found["passes"] == 12 and found["against"] == "the 2 images of the validation"
    )
    assert len(found["images"]) == 10 and all(
        -1 <= each["influence"] <= 1 for each in found["images"]
    )
    run_tool("influence", [run, "--threshold", "0.01"])  # its own folder is replaced
    rows = json.loads((run / "influence" / "influence.json").read_text())["images"]
    assert [row["deviation"] for row in rows] == sorted(
        row["deviation"] for row in rows
    )
    text = (run / "influence" / "influence.html").read_text()
    assert "Which images hurt" in text and NOT_FOUND in text
    suspects = read_suspects(run / "influence" / FILE)
    # at most a fifth of ten
    assert [*suspects] == [os.path.realpath(row["image"]) for row in rows[:2]]

    with pytest.raises(RunError, match="suspect 2"):
        run_tool("lint", [job, "--skip", *_other_checks()])
    with pytest.raises(RunError, match="suspect 2"):
        run_tool(
            "lint",
            [
                images,
                "--suspects",
                run / "influence" / FILE,
                "--skip",
                *_other_checks(),
            ],
        )
    assert "acts against the other images" in capsys.readouterr().out
    later = (run / "influence" / FILE).stat().st_mtime + 10
    os.utime(Path(rows[0]["image"]).with_suffix(".txt"), (later, later))
    with pytest.raises(RunError, match="suspect 1"):
        run_tool("lint", [job, "--skip", *_other_checks()])

    (run / "influence" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigErrors, match=r"holds 'mine\.txt', which was not made by"):
        section_of("influence", [run])
    (run / "influence" / "mine.txt").unlink()
    Path(rows[0]["image"]).unlink()
    notes = section_of("influence", [run]).measurement().notes()
    assert any(
        f"1 removed ({images}/{Path(rows[0]['image']).name})" in line for line in notes
    )
    for file in run.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ConfigErrors, match="holds no saved LoRA"):
        section_of("influence", [run])
    Path(images).rename(tmp_path / "moved")
    with pytest.raises(ConfigErrors, match="images"):
        section_of("influence", [run])


@pytest.mark.slow
def test_pairs_with_repeats_on_a_quantized_model_with_another_adapter_in_a_run_that_was_killed(
    write_job, trainer, make_pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    section = trainer(
        tmp_path / "images", train={"steps": 2, "lr": 0.05}, save={"save_every": 1}
    )
    make_pictures(tmp_path / "images" / "3_char", *NAMES[:8])
    section["datasets"][0]["control_path"] = str(
        make_pictures(tmp_path / "before", *NAMES[:8])
    )
    section["train"]["disable_sampling"] = True
    section["model"]["quantize"] = True
    section["network"] = {"type": "lokr", "linear": 4, "linear_alpha": 4}
    run_job(write_job(section, name="my_char"))
    run = tmp_path / "output" / "my_char"
    (run / "my_char.safetensors").unlink()
    (run / "run.json").write_text(
        json.dumps(json.loads((run / "run.json").read_text()) | {"status": "running"})
    )
    run_tool("influence", [run])
    found = json.loads((run / "influence" / "influence.json").read_text())
    assert (len(found["images"]), found["passes"], found["passes_of_an_epoch"]) == (
        8,
        24,
        24,
    )
    assert [each["step"] for each in found["rounds"]] == [1, 2, 1]
    first = found["images"][0]["by_round"]
    assert all(0 < abs(value) <= 1 for value in first) and first[0] != first[2]


def _other_checks() -> list[str]:
    return [name for name in CHECKS if name != "suspect"]


@pytest.mark.slow
def test_fully_trained_models_and_small_datasets_are_refused(
    write_job, trainer, make_pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained(write_job, trainer, make_pictures(tmp_path / "few", *"abc"))
    with pytest.raises(
        ConfigErrors, match=r"trained on 3 images\. At least 8 are needed"
    ):
        section_of("influence", [tmp_path / "output" / "my_char"])
    job = tmp_path / "output" / "my_char" / "config.yaml"
    document = yaml.safe_load(job.read_text())
    document["config"]["process"][0]["network"] = {"type": "full"}
    job.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigErrors, match="trains the model itself"):
        section_of("influence", [tmp_path / "output" / "my_char"])


def test_a_long_gradient_against_the_others_is_a_suspect_and_none_is_among_equals() -> (
    None
):
    from types import SimpleNamespace

    sample = [
        SimpleNamespace(sample=SimpleNamespace(image=name, caption=""))
        for name in NAMES
    ]
    plan = SimpleNamespace(images=sample, groups=(0,) * 12)
    influence = torch.linspace(0.4, 0.6, 12)[None].clone()
    length = torch.linspace(1.2, 1.0, 12)[None].clone()
    assert not any(each.suspect for each in ranked(plan, influence, length, 3))  # type: ignore[arg-type]
    influence[0, 4], length[0, 4] = -0.3, 3.0
    first, *others = ranked(plan, influence, length, 3)  # type: ignore[arg-type]
    assert (
        first.image == "e"
        and first.suspect
        and not any(each.suspect for each in others)
    )
    assert first.gradient == pytest.approx(
        3 / 1.1, rel=0.05
    ) and first.reason.startswith("influence -0.300, gradient 2.8")


def test_a_list_of_suspects_may_be_written_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a # b.png").write_bytes(b"")
    (tmp_path / FILE).write_text(
        suspects_text({str(tmp_path / "a # b.png"): "why"}, "two\nlines")
        + "a # b.png\n"
    )
    assert read_suspects(tmp_path / FILE) == {
        os.path.realpath(tmp_path / "a # b.png"): ""
    }
    (tmp_path / FILE).write_text(
        suspects_text({str(tmp_path / "a # b.png"): "why"}, "two\nlines")
    )
    assert read_suspects(tmp_path / FILE) == {
        os.path.realpath(tmp_path / "a # b.png"): "why"
    }


# ------------------------------------------------------------ sketches of gradients


def test_a_sketch_keeps_lengths_and_angles() -> None:
    torch.manual_seed(0)
    first = [torch.randn(300, 100), torch.randn(7)]
    second = [a + torch.randn_like(a) for a in first]
    flat = [torch.cat([part.flatten() for part in parts]) for parts in (first, second)]
    small = [sketch(parts, 4096) for parts in (first, second)]
    assert functional.cosine_similarity(*small, dim=0).item() == pytest.approx(
        functional.cosine_similarity(*flat, dim=0).item(), abs=4 / 64
    )
    assert small[0].norm().item() == pytest.approx(flat[0].norm().item(), rel=0.1)
    assert torch.equal(small[0], sketch(first, 4096))
    one = sketch([torch.tensor([0.0, 3.0])], 4096)  # nothing is lost where it fits
    assert one.abs().sum() == 3 and one.count_nonzero() == 1


def test_influence_is_the_cosine_with_the_mean_of_the_others() -> None:
    units = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert influence_on_others(units).tolist() == pytest.approx([0, 0, 0, -2 / 5**0.5])
    assert influence_on(units, units[2:3]).tolist() == [0, 0, 1, 0]


def test_deviations_are_robust_and_of_each_group() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 2.0, 100.0, 10.0, 20.0, 30.0])
    groups = (0, 0, 0, 0, 0, 1, 1, 1)
    assert medians(values, groups).tolist() == [2] * 5 + [20] * 3
    assert deviations(values, groups).tolist() == pytest.approx(
        [-1 / NORMAL, 0, 1 / NORMAL, 0, 98 / NORMAL, -1 / NORMAL, 0, 1 / NORMAL]
    )
