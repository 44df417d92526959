"""Files for ComfyUI against its own code: which model it takes them for, the weights it
makes of them, the velocity.

Everything starts from the numbers of `drawn`, so that the table holds results only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.diffusers_reference import CPU, MEMBERS, open_tiny, relative
from tests.golden_tables import FOLDER, drawn, golden, table
from tests.measured import at_most
from tests.network_files import save_network
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.network import NetworkConfig
from toolkit.contracts.data import PromptEmbeds
from toolkit.contracts.network_kinds import KINDS
from toolkit.memory.quantization import quantizer
from toolkit.models.loading import load_model
from toolkit.models.single_file import markers_of
from toolkit.models.tiny import write_tiny_model
from toolkit.networks.lora_formats import in_one
from toolkit.registry import FAMILIES
from toolkit.train.base_model import base_merging

NETWORKS = {
    "lora": {"type": "lora"},
    "dora": {"type": "dora"},
    "loha": {"type": "loha"},
    "lokr": {"type": "lokr", "factor": 4},
    "lokr in full": {"type": "lokr", "lokr_full_rank": True},
}
LEVEL = 0.6
TEXT = (1, 5, 64)
LATENTS = (1, 16, 4, 8)
REFERENCES = {"reference_1": (1, 16, 8, 4), "reference_2": (1, 16, 4, 4)}
EDITS = "Qwen-Image-Edit-2509"


def write_drawn(folder: Path, member: str) -> Path:
    """A tiny model of drawn weights; its transformer in one file, as a job and `merge`
    write it."""
    write_tiny_model(folder, MEMBERS[member])
    shards = {
        file: load_file(file) for file in (folder / "transformer").glob("*.safetensors")
    }
    numbers = drawn(
        {
            name: tuple(t.shape)
            for shard in shards.values()
            for name, t in shard.items()
        },
        seed=0,
    )
    weights = {name: torch.from_numpy(found).float() for name, found in numbers.items()}
    for file, shard in shards.items():
        save_file(
            {name: weights[name] for name in shard}, file, metadata={"format": "pt"}
        )
    title = FAMILIES.load(MEMBERS[member].arch).of_folder(folder).title
    save_file(in_one(weights, markers_of(title)), folder / "one.safetensors")
    return folder / "one.safetensors"


def in_fp8(file: Path) -> Path:
    """The same with the matrices of its blocks in fp8, each with one scale."""
    stored = load_file(file)
    for name, weight in list(stored.items()):
        if weight.ndim == 2 and "transformer_blocks" in name:
            scale = weight.abs().max() / 448
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[f"{name.removesuffix('.weight')}.scale_weight"] = scale
    path = file.with_name("fp8.safetensors")
    save_file(stored | {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}, path)
    return path


def loaded(folder: Path, file: Path, **keys: object) -> torch.nn.Module:
    section = ModelConfig(name_or_path=str(folder), transformer_path=str(file), **keys)
    return load_model(
        section, CPU, torch.float32, quantizer, merge_fn=base_merging(section)
    ).network_module


def write_network(path: Path, folder: Path, base: Path, settings: dict) -> Path:
    """The file of a network with drawn matrices on this base."""
    module = loaded(folder, base)
    kind = KINDS[settings["type"]]
    network = kind.load().from_config(
        NetworkConfig(**settings, linear=3, linear_alpha=2),
        open_tiny(folder).lora_targets(),
        1,
    )
    network.attach(module)
    parameters = network.parameters()
    for name, numbers in drawn(
        {name: tuple(p.shape) for name, p in parameters.items()}, seed=1
    ).items():
        # A magnitude starts as the norms of the weight; what is drawn for it is its
        # change.
        parameters[name].data = (
            parameters[name].data * name.endswith("dora_scale")
            + torch.from_numpy(numbers).float()
        )
    save_network(path, network.export(parameters), "float32", {})
    return path


def velocity(folder: Path, references: int) -> Tensor:
    """[1, 16, 4, 8] at one level, of drawn latents, references and text embeddings of
    about unit size."""
    shapes = {"latents": LATENTS, **REFERENCES, "text": TEXT}
    given = {
        name: torch.from_numpy(numbers).float() * 10
        for name, numbers in drawn(shapes, seed=2).items()
    }
    chosen = tuple(given[name][0] for name in list(REFERENCES)[:references])
    prompts = PromptEmbeds(given["text"], (TEXT[1],))
    with torch.no_grad():
        return open_tiny(folder).predict_velocity(
            given["latents"], torch.tensor([LEVEL]), prompts, [chosen]
        )


@pytest.fixture(scope="module")
def member(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    folder = tmp_path_factory.mktemp("model")
    return request.param, folder, write_drawn(folder, request.param)


@pytest.mark.parametrize("member", MEMBERS, indirect=True)
def test_a_model_in_one_file_is_the_model_that_comfyui_makes_of_it(
    member: tuple[str, Path, Path],
) -> None:
    name, folder, file = member
    [expected] = golden("comfyui_models", case=name, model="QwenImage")
    shapes = {name: list(tensor.shape) for name, tensor in load_file(file).items()}
    assert [name for name in sorted(shapes) if shapes[name] == [0]] == expected[
        "markers"
    ]
    is_2511 = expected["reference_method"] == "index_timestep_zero"
    assert is_2511 == MEMBERS[name].zero_cond_t == bool(expected["markers"])
    assert {name: shape for name, shape in shapes.items() if shape != [0]} == table(
        "comfyui_models"
    )["weights"]
    theirs = load_file(FOLDER / "comfyui_velocities.safetensors")
    compared = [key for key in theirs if key.startswith(f"{name}.")]
    for key in compared:
        at_most(
            f"velocity of ComfyUI, {key}",
            relative(velocity(folder, int(key[-1])), theirs[key]),
            5e-6,
        )
    assert len(compared) == 1 + min(2, FAMILIES.load(MEMBERS[name].arch).max_references)


@pytest.mark.parametrize(
    ("network", "base"),
    [
        (network, ("float32", "fp8")[index % 2])
        for index, network in enumerate(NETWORKS)
    ],
)
@pytest.mark.parametrize("member", [EDITS], indirect=True)
def test_a_network_of_one_file_changes_the_weights_as_in_comfyui(
    member: tuple[str, Path, Path], network: str, base: str, tmp_path: Path
) -> None:
    _, folder, whole = member
    file = whole if base == "float32" else in_fp8(whole)
    [case] = golden("comfyui_networks", network=network, base=base, keys_not_loaded=0)
    saved = write_network(
        tmp_path / "network.safetensors", folder, file, NETWORKS[network]
    )
    ours = loaded(folder, file, base_loras=[{"path": str(saved)}]).state_dict()
    expected = case["patched"]
    directions = drawn({name: tuple(ours[name].shape) for name in expected}, seed=3)
    for name, (norm, product) in expected.items():
        weight, direction = ours[name].double(), torch.from_numpy(directions[name])
        assert float(weight.norm()) == pytest.approx(norm, rel=1e-6), name
        assert float((weight * direction).sum()) == pytest.approx(
            product, abs=1e-6 * norm * float(direction.norm())
        )
