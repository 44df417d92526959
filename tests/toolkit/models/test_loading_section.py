from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from tests.diffusers_reference import CPU
from tests.model_folders import write_cached, write_model
from toolkit.config.sections.model import ModelKwargs
from toolkit.config.sections.model_files import looks_like_a_path
from toolkit.contracts.data import Size
from toolkit.errors import UserError
from toolkit.memory.quantization import (
    BlockwiseQuantized,
    QuantizedLinear,
    RowwiseQuantized,
    quantizer,
)
from toolkit.models import families, loading
from toolkit.models.loading import checked_family, load_model, model_folder


def model(name_or_path: Path | str, **changes) -> SimpleNamespace:
    section = {
        "name_or_path": str(name_or_path),
        "transformer_path": None,
        "vae_path": None,
        "text_encoder_path": None,
        "file_fault": "",
        "revision": None,
        "arch": None,
        "quantize": False,
        "qtype": "int8",
        "quantize_te": False,
        "qtype_te": "float8",
        "accuracy_recovery_adapter": None,
        "low_vram": False,
        "modulation_table": "auto",
        "model_kwargs": ModelKwargs(),
    }
    assert set(changes) <= set(section)
    return SimpleNamespace(**(section | changes))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Path:
        raise AssertionError("asked the hub")

    monkeypatch.setattr(loading, "download", fail)
    monkeypatch.setattr(loading, "fetch_index", fail)


@pytest.mark.usefixtures("no_network")
def test_a_local_folder_never_asks_the_hub(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model_folder(model(tiny_model)) == tiny_model
    # A relative folder of the form owner/name that is there wins over a hub id in the
    # cache.
    monkeypatch.chdir(tiny_model.parent.parent)
    relative = f"{tiny_model.parent.name}/{tiny_model.name}"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    write_cached(tmp_path, relative, "FluxPipeline")
    assert not looks_like_a_path(relative)
    assert model_folder(model(relative)) == Path(relative)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "name",
    ["./models/x", "/models/x", "~/x", "models/qwen/x", "x", "models\\x", "models/x"],
)
def test_a_path_that_is_not_there_is_a_mistake(name: str) -> None:
    with pytest.raises(
        UserError, match=r"model\.name_or_path: .*(does not exist|neither a folder)"
    ):
        model_folder(model(name))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Path]:
    """What the hub gives by the names of models, at revision abc; the files of none are
    here."""
    models: dict[str, Path] = {}
    monkeypatch.setattr(
        loading,
        "fetch_index",
        lambda name, revision: models[name, revision] / "model_index.json",
    )
    monkeypatch.setattr(
        loading, "download", lambda name, revision, given: models[name, revision]
    )
    monkeypatch.setattr(
        families,
        "local_index",
        lambda name, revision: models[name, revision] / "model_index.json",
    )
    return models


def test_a_hub_id_is_brought_at_its_revision(hub, tmp_path: Path) -> None:
    hub["Qwen/Qwen-Image-Edit-2509", "abc"] = folder = write_model(
        tmp_path / "snapshot"
    )
    assert model_folder(model("Qwen/Qwen-Image-Edit-2509", revision="abc")) == folder


def test_a_hub_model_of_another_family_is_not_brought(
    hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub["someone/flux", "abc"] = write_model(tmp_path / "snapshot", "FluxPipeline")
    monkeypatch.delattr(loading, "download")
    for look in (checked_family, lambda section: model_folder(section)):
        with pytest.raises(UserError, match="'someone/flux' is another model"):
            look(model("someone/flux", revision="abc"))


def test_a_hub_model_without_a_part_is_a_mistake(hub, tmp_path: Path) -> None:
    hub["someone/model", "abc"] = write_model(
        tmp_path / "snapshot", without="processor"
    )
    with pytest.raises(UserError, match=r"'someone/model': processor/ is missing"):
        model_folder(model("someone/model", revision="abc"))


def quantized_linears(module: torch.nn.Module) -> int:
    return sum(isinstance(layer, QuantizedLinear) for layer in module.modules())


def test_the_section_decides_what_is_quantized(tiny_model: Path) -> None:
    plain = load_model(model(tiny_model), CPU, torch.float32, quantizer)
    assert quantized_linears(plain.network_module) == 0
    both = load_model(
        model(tiny_model, quantize=True, quantize_te=True),
        CPU,
        torch.float32,
        quantizer,
    )
    assert quantized_linears(both.network_module) == 2 * 14
    assert type(both.blocks()[0].attn.to_q.weight) is RowwiseQuantized
    both.encode_prompt("a cat", [])
    text = both.part("text_encoder")
    assert (
        text.language_model.layers[0].mlp.up_proj.weight.code_type
        is torch.float8_e4m3fn
    )
    assert quantized_linears(text.visual) == 0
    assert both.cache_key("text_encoder") == plain.cache_key("text_encoder") + "float8"


@pytest.mark.parametrize(
    ("kwargs", "side"),
    [
        ({}, 1024),
        ({"control_resolution": 256}, 256),
        ({"match_target_res": True, "control_resolution": 256}, 128),
    ],
)
def test_model_kwargs_decide_the_size_of_references(
    tiny_model: Path, kwargs: dict[str, Any], side: int
) -> None:
    image, target = Size(500, 500), Size(128, 128)
    opened = load_model(
        model(tiny_model, model_kwargs=ModelKwargs(**kwargs)),
        CPU,
        torch.float32,
        quantizer,
    )
    assert opened.reference_size(image, target) == (side, side)


@pytest.mark.parametrize(
    ("wanted", "device", "table"),
    [
        ("auto", "cpu", False),
        ("auto", "cuda", True),
        (True, "cpu", True),
        (False, "cuda", False),
    ],
)
def test_the_modulation_comes_from_a_table_on_a_gpu_unless_it_is_said(
    tiny_model: Path, wanted: object, device: str, table: bool
) -> None:
    section = model(tiny_model, modulation_table=wanted)
    assert (
        load_model(
            section, torch.device(device), torch.float32, quantizer
        ).options.modulation_table
        is table
    )


def test_blocks_can_wait_in_the_main_memory(tiny_model: Path) -> None:
    """On a device without numbers: what is not there was left on the CPU."""
    section = model(tiny_model, low_vram=True)
    opened = load_model(
        section,
        torch.device("meta"),
        torch.float32,
        quantizer,
        cpu_blocks=frozenset({1}),
    )
    places = [{p.device.type for p in block.parameters()} for block in opened.blocks()]
    assert places == [{"meta"}, {"cpu"}]


def test_the_blocks_can_have_a_quantizer_of_their_own(tiny_model: Path) -> None:
    section = model(tiny_model, quantize=True, quantize_te=True, qtype_te="int8")
    own = load_model(
        section,
        CPU,
        torch.float32,
        quantizer,
        block_quantizer=lambda qtype: quantizer("fp8_scaled"),
    )
    assert type(own.blocks()[0].attn.to_q.weight) is BlockwiseQuantized
    own.encode_prompt("a cat", [])
    assert (
        type(own.part("text_encoder").language_model.layers[0].mlp.up_proj.weight)
        is RowwiseQuantized
    )
