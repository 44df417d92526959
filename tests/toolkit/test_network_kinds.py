"""The table of kinds: the sizes of all matrices against LyCORIS where it has the kind, and whole jobs of each."""

import re
from math import prod
from pathlib import Path

import pytest
import torch
from lycoris.functional.general import factorization
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from safetensors import safe_open
from safetensors.torch import load_file

from toolkit.config.network import NetworkConfig
from toolkit.network_kinds import KINDS, factorise, loha_shapes, lokr_shapes
from toolkit.networks.formats import read_network_file


@pytest.mark.parametrize("factor", [-1, 1, 2, 3, 4, 7, 8, 16, 48, 100])
def test_a_size_is_factorised_as_lycoris_does(factor: int) -> None:
    for size in [*range(1, 130), 256, 384, 3072, 3584, 12288, 18432]:
        assert factorise(size, factor) == factorization(size, factor), size


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (64, 384), (256, 64), (30, 42)])
@pytest.mark.parametrize(("rank", "factor", "whole"), [(1, -1, False), (4, -1, False), (4, 4, False), (2, 8, True)])
def test_the_matrices_are_those_of_lycoris(inputs: int, outputs: int, rank: int, factor: int, whole: bool) -> None:
    layer = torch.nn.Linear(inputs, outputs)
    lokr = LokrModule("x", layer, lora_dim=rank, factor=factor, full_matrix=whole)
    loha = LohaModule("x", layer, lora_dim=rank)
    ours = lokr_shapes(inputs, outputs, rank, factor, whole), loha_shapes(inputs, outputs, rank)
    for shapes, theirs in zip(ours, (lokr, loha), strict=True):
        assert shapes == {name: tuple(p.shape) for name, p in theirs.named_parameters() if "org" not in name}


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"type": "lora"}, 4 * (64 + 256)),
        ({"type": "dora"}, 4 * (64 + 256) + 64),
        ({"type": "loha"}, 2 * 4 * (64 + 256)),
        ({"type": "lokr", "factor": 4}, 4 * 4 + 4 * (16 + 64)),
        ({"type": "lokr", "factor": 4, "lokr_full_rank": True}, 4 * 4 + 16 * 64),
        ({"type": "lokr"}, 16 * 8 + 4 * (16 + 8)),
        ({"type": "lokr", "linear": 8}, 16 * 8 + 16 * 8),  # a rank of half of 16 saves nothing
    ],
)
def test_the_weights_of_a_layer_are_counted(settings: dict, weights: int) -> None:
    """On 64 inputs (in balance 8 x 8) and 256 outputs (16 x 16)."""
    section = NetworkConfig(**{"linear": 4, **settings})
    assert sum(map(prod, KINDS[settings["type"]].layer_shapes(section, 64, 256).values())) == weights


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(kind for kind in KINDS if kind != "full"), "lycoris"])
def test_a_job_stops_goes_on_and_leaves_a_file_that_is_read_back(
    run_py, write_job, trainer, make_pictures, tmp_path: Path, name: str
) -> None:
    """2 steps and 2 more against 4 at once, on an int8 base with every dropout and checkpointing."""
    folder = make_pictures(tmp_path / "2_photos", "a", "b")
    kind = {"lycoris": "lokr"}.get(name, name)

    def train(run: str, steps: int) -> Path:
        section = trainer(
            folder,
            training_folder=run,
            train={"steps": steps, "gradient_checkpointing": True, "ema_config": {"use_ema": True}},
            network={
                "type": name,
                "linear": 3,
                "linear_alpha": 1.5,
                "dropout": 0.1,
                "rank_dropout": 0.1,
                "module_dropout": 0.1,
                "exclude_patterns": [r".*_mod\.1"],
                **({"network_kwargs": {"algo": "lokr"}} if name == "lycoris" else {}),
            },
        )
        section["model"] |= {"quantize": True, "qtype": "int8", "int8_matmul": kind == "lora"}
        result = run_py(write_job(section))
        assert result.returncode == 0, result.stdout + result.stderr
        words = "balanced, rank 3" if kind == "lokr" else "rank 3"
        assert f"{kind} {words} on 24 layers: " in result.stdout
        counts = re.findall(r"(?:on 24 layers: |: 24 layers, )([\d,]+) (?:trainable )?weights", result.stdout)
        assert len(counts) == 2 and len(set(counts)) == 1  # the plan and the network
        return tmp_path / run / "job" / "job.safetensors"

    train("parts", 2)
    parts, whole = train("parts", 4), train("whole", 4)
    stored = load_file(whole)
    assert all(torch.equal(tensor, stored[key]) for key, tensor in load_file(parts).items())
    with safe_open(whole, framework="pt") as file:
        assert file.metadata()["network_type"] == kind
    modules = {key.removeprefix("diffusion_model.").removesuffix(".alpha") for key in stored if key.endswith(".alpha")}
    assert len(modules) == 24  # two blocks of 14 layers, less the modulations
    changes = read_network_file(whole, modules)
    assert any(change.delta().any() for change in changes.values())
