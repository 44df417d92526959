"""Averages of saved files, against musubi-tuner's numbers
(tests/golden/posthoc_ema.json)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from extensions.tools.lora_tools.post_hoc_ema import (
    average,
    linear_betas,
    power_betas,
    steps_of,
)
from tests.golden_tables import golden
from toolkit.errors import UserError
from toolkit.optim.ema import MAX_SIGMA_REL, gamma_of

CASES = golden("posthoc_ema")


def write(
    folder: Path, checkpoints: list[dict], dtype: torch.dtype = torch.float32
) -> list[Path]:
    files = []
    for index, checkpoint in enumerate(checkpoints, start=1):
        path = folder / f"run_{index:06d}.safetensors"
        tensors = {
            name: torch.tensor(value, dtype=torch.float32).to(dtype)
            for name, value in checkpoint.items()
        }
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        files.append(path)
    return files


@pytest.mark.parametrize(
    "case",
    CASES,
    ids=lambda c: f"{c['beta']}-{c['beta2']}-{c['sigma_rel']}-{c['dtype']}",
)
def test_the_averages_are_those_of_musubi_tuner(case: dict, tmp_path: Path) -> None:
    """With its betas. Its betas of a power function give the first file no weight, and
    ours do: see below."""
    files = write(tmp_path, case["checkpoints"], getattr(torch, case["dtype"]))
    if case["sigma_rel"]:
        assert gamma_of(case["sigma_rel"]) == pytest.approx(case["gamma"], rel=1e-6)
        betas = [
            (1 - 1 / count) ** (case["gamma"] + 1) for count in range(1, len(files))
        ]
    else:
        betas = linear_betas(len(files), case["beta"], case["beta2"])
    assert [round(beta, 4) for beta in betas] == case["betas_used_4dp"]
    found = average(files, betas)
    assert found.keys() == case["result"].keys()
    for name, expected in case["result"].items():
        tolerance = 1e-6 if case["dtype"] == "float32" else 1e-2
        np.testing.assert_allclose(
            found[name].float().numpy(), expected, atol=tolerance, rtol=tolerance
        )


def test_betas_of_a_power_function_give_each_step_its_power() -> None:
    """A file stands for the steps since the one before it: its share is the integral of
    t^gamma over them."""
    steps, sigma = [100, 200, 500, 800], 0.2
    shares = [1.0]
    for beta in power_betas(steps, sigma):
        shares = [*(share * beta for share in shares), 1 - beta]
    gamma = gamma_of(sigma)
    integrals = [b ** (gamma + 1) - a ** (gamma + 1) for a, b in pairwise([0, *steps])]
    assert shares == pytest.approx(
        [integral / sum(integrals) for integral in integrals]
    )
    assert shares[0] > 0


def test_the_widest_power_function_is_the_even_mean() -> None:
    assert gamma_of(MAX_SIGMA_REL) == pytest.approx(0, abs=1e-6)
    assert power_betas([1, 2, 3, 4], MAX_SIGMA_REL) == pytest.approx(
        [1 / 2, 2 / 3, 3 / 4]
    )
    with pytest.raises(
        UserError,
        match=r"sigma_rel: 0.3 is out of range: must be above 0 and at most 0.2887",
    ):
        gamma_of(0.3)


def test_steps_are_those_of_the_metadata_then_of_the_name(tmp_path: Path) -> None:
    named, told = tmp_path / "v2_run_000300.safetensors", tmp_path / "final.safetensors"
    save_file({"a": torch.ones(1)}, named)
    save_file({"a": torch.ones(1)}, told, {"training_info": '{"step": 400}'})
    assert steps_of([told, named]) == [400, 300]
    save_file({"a": torch.ones(1)}, tmp_path / "nothing.safetensors")
    with pytest.raises(
        UserError, match=r"nothing\.safetensors: neither its metadata nor its name"
    ):
        steps_of([named, tmp_path / "nothing.safetensors"])
    save_file({"a": torch.ones(1)}, tmp_path / "copy_300.safetensors")
    with pytest.raises(UserError, match="are of the same step, 300"):
        steps_of([named, tmp_path / "copy_300.safetensors"])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"a.weight": [1.0, 2.0]}, "lacks 'a.alpha'"),
        (
            {"a.weight": [1.0], "a.alpha": 1.0},
            r"a.weight has the shape \[1\], and \[2\]",
        ),
        ({"a.weight": [1.0, 2.0], "a.alpha": 2.0}, "a.alpha differs"),
        ({"a.weight": [1.0, float("nan")], "a.alpha": 1.0}, "a.weight is not finite"),
    ],
)
def test_files_that_do_not_match_are_refused(
    tmp_path: Path, second: dict, message: str
) -> None:
    files = write(tmp_path, [{"a.weight": [1.0, 2.0], "a.alpha": 1.0}, second])
    with pytest.raises(UserError, match=message):
        average(files, [0.5])
