import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from toolkit.config.network import KINDS
from toolkit.contracts import Network
from toolkit.networks.formats import read_network_file
from toolkit.networks.registry import NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_type_loads(name: str) -> None:
    assert issubclass(NETWORKS.load(name), Network)


def test_the_config_knows_the_same_kinds() -> None:
    assert set(NETWORKS) == set(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(kind for kind in NETWORKS if kind != "full"), "lycoris"])
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
