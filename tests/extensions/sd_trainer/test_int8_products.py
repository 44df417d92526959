"""What a job gets of the int8 products it wants, and the line that says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from extensions.sd_trainer import int8_products
from extensions.sd_trainer.config import SdTrainerConfig
from extensions.sd_trainer.int8_products import choose_int8_products
from tests.diffusers_reference import CPU, REFERENCES, encode_photos, open_tiny, photo_item
from toolkit.config.loader import load_job
from toolkit.contracts import BatchSpec, Size
from toolkit.data.batches import BatchLoader, LatentBatch
from toolkit.errors import RunError
from toolkit.memory import int8_matmul
from toolkit.memory.int8_matmul import applies
from toolkit.memory.int8_probe import int8_layers
from toolkit.memory.quantize import quantizer
from toolkit.networks.lora import LoraNetwork
from toolkit.parallel import Team


@pytest.fixture(autouse=True)
def asked_anew():
    applies.cache_clear()
    yield
    applies.cache_clear()


@pytest.fixture
def choose(tiny_model: Path, trainer, write_job, make_pictures, tmp_path: Path):
    """Makes the choice for a job with these keys of `model:`; gives the lines it said and the layers."""
    photos = make_pictures(tmp_path / "photos", "a")
    dataset = encode_photos(open_tiny(tiny_model, match_target_res=True), photo_item(Size(64, 64), REFERENCES[:1]))

    def first() -> tuple[LatentBatch, Tensor]:
        noise_BCHW = torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(5))
        return BatchLoader(dataset, seed=1).load(BatchSpec(0, (0,), (0,))), noise_BCHW

    def run(train: dict | None = None, first=first, team: Team | None = None, **keys):
        section = trainer(photos, train=train)
        section["model"] |= {"quantize": True, **keys}
        section = load_job(write_job(section), lambda _: SdTrainerConfig).processes[0].section
        adapter = open_tiny(tiny_model, match_target_res=True, transform_block=quantizer(section.model.qtype))
        network = LoraNetwork(adapter.lora_targets(), 4, 4.0, dropout=0.0, seed=1)
        network.attach(adapter.network_module)
        notes: list[str] = []
        choose_int8_products(section, adapter, network, CPU, first, team or Team(), notes.append)
        return notes, int8_layers(adapter.network_module)

    return run


ALL = "of 28 int8 layers 24 round their inputs to int8 too, 18 their gradients, which is faster; false keeps them whole"


@pytest.mark.parametrize(
    ("keys", "exact", "said"),
    [
        ({"int8_matmul": "auto"}, True, []),  # no layer of the tiny model is wide enough
        ({"int8_matmul": False}, True, []),
        ({"int8_matmul": True}, True, [f"model.int8_matmul true: {ALL}"]),
        ({"int8_matmul": True}, False, ["model.int8_matmul true has no effect: cpu has no exact product of int8."]),
        ({"int8_matmul": True, "qtype": "int4"}, True, []),
    ],
)
def test_one_line_says_what_is_rounded(choose, monkeypatch, keys: dict, exact: bool, said: list[str]) -> None:
    monkeypatch.setattr(int8_matmul, "is_exact", lambda device: exact)
    monkeypatch.setattr(int8_products, "is_exact", lambda device: exact)
    notes, layers = choose(**keys)
    assert notes == said
    assert any(layer.in_int8.forward for layer in layers) == bool(said and exact)


def test_layers_that_would_lose_too_much_are_said_and_left(choose, monkeypatch) -> None:
    monkeypatch.setattr("toolkit.memory.int8_probe.MOST_ERROR", 0.0085)
    (line,), layers = choose(int8_matmul=True)
    inputs, gradients = (sum(getattr(layer.in_int8, way) for layer in layers) for way in ("forward", "backward"))
    assert 0 < inputs < 24 and 0 < gradients < 18
    assert f"of 28 int8 layers {inputs} round their inputs to int8 too, {gradients} their gradients" in line
    assert "would lose more than" in line and "programs" not in line


def test_where_blocks_are_alike_anyway_nothing_is_given_up(choose) -> None:
    (line,), _ = choose({"compile": {"enabled": True, "backend": "eager"}}, int8_matmul=True)
    # In a block by itself six products are never made: they go by those of the other one.
    assert line == f"model.int8_matmul true: {ALL}".replace("18 their", "24 their")


def test_what_is_given_up_for_few_programs_is_said(choose, monkeypatch) -> None:
    monkeypatch.setattr("toolkit.memory.int8_probe.MOST_ERROR", 0.0085)
    monkeypatch.setattr("toolkit.memory.int8_probe.MOST_PATTERNS", 1)
    (line,), layers = choose({"compile": {"enabled": True, "backend": "eager"}}, int8_matmul=True)
    assert "; 2 products are left as they are so that few programs are compiled" in line
    half = len(layers) // 2
    assert [layer.in_int8 for layer in layers[:half]] == [layer.in_int8 for layer in layers[half:]]


def test_a_machine_that_cannot_do_it_decides_for_all(choose, monkeypatch) -> None:
    team = Team()
    monkeypatch.setattr(team, "gather", lambda value: [value, False])
    notes, layers = choose(team=team, int8_matmul=True)
    assert notes == ["model.int8_matmul true has no effect: another process has no exact product of int8."]
    assert not any(any(layer.in_int8) for layer in layers)


def test_a_card_too_small_for_one_image_is_told_what_saves_memory(choose) -> None:
    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RunError, match=r"out of memory with one image\. To save memory"):
        choose(first=too_large, int8_matmul=True)


@pytest.fixture
def run_job(run_py, write_job, trainer, make_pictures, tmp_path: Path):
    """Runs a job of 4 steps on int8 products, PyTorch told to log what it compiles; gives its folder."""
    photos = make_pictures(tmp_path / "photos", "a", "b", "c", size=(160, 128))

    def run(name: str, train: dict | None = None, **changes) -> Path:
        section = trainer(photos, train={"steps": 4, **(train or {})}, save={"save_every": 2}, **changes)
        section["model"] |= {"quantize": True, "int8_matmul": True}
        section["datasets"][0]["resolution"] = 128
        result = run_py(write_job(section, name=name), env={"TORCH_LOGS": "dynamo"})
        assert result.returncode == 0, result.stdout + result.stderr
        assert ("start tracing" in result.stdout + result.stderr) == ("compile" in (train or {}))
        assert result.stdout.count("model.int8_matmul true: of 28 int8 layers ") == 1
        return tmp_path / "output" / name

    return run


def weights_of(run: Path) -> bytes:
    return (run / f"{run.name}.safetensors").read_bytes()


def test_a_run_that_goes_on_multiplies_as_the_uninterrupted_one(run_job) -> None:
    folder = run_job("job")
    straight = weights_of(folder)
    run_job("job", resume=2)
    assert weights_of(folder) == straight


def test_a_compiled_job_learns_what_the_plain_one_does(run_job) -> None:
    folders = (
        run_job("plain"),
        run_job("compiled", {"compile": {"enabled": True, "backend": "eager", "fullgraph": True}}),
    )
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in folders
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
