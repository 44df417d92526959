"""A LoRA is put into ComfyUI's folder, and nothing there is replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from extensions.tools.ui import comfyui
from extensions.tools.ui.state import Ui
from tests.extensions.tools.ui.conftest import run_here

LAYER = "transformer_blocks.0.img_mlp.gate_layer"


@pytest.fixture
def loras(client: TestClient, ui: Ui, tmp_path: Path) -> Path:
    """The folder of LoRAs in one of ComfyUI, which was set on the page."""
    folder = tmp_path / "ComfyUI" / "models" / "loras"
    folder.mkdir(parents=True)
    given = {"folder": f" {tmp_path / 'ComfyUI'} "}
    assert client.post("/system/comfyui", data=given).status_code == 200
    assert comfyui.kept_folder(ui) == str(folder)
    return folder


def test_the_folder_is_one_of_this_machine_and_other_settings_stay(
    client: TestClient, ui: Ui, loras: Path
) -> None:
    client.post("/system/price", data={"price": "2"})
    for wrong in ("gone", "/gone", "models/loras", str(loras / "a.safetensors")):
        answer = client.post("/system/comfyui", data={"folder": wrong})
        assert answer.status_code == 400 and "not a folder of this" in answer.text
        assert comfyui.kept_folder(ui) == str(loras)
    client.post("/system/comfyui", data={"folder": ""})
    assert comfyui.kept_folder(ui) == "" and '"price_per_hour": 2' in (
        ui.settings.read_text()
    )


def test_a_button_copies_the_lora_under_a_name_that_is_free(
    client: TestClient, make_run: Callable[..., Path], loras: Path
) -> None:
    file = make_run("one") / "one.safetensors"
    assert 'button form="put" name="file" value="one.safetensors"' in (
        client.get("/runs/one").text
    )
    mine = loras / "one.safetensors"
    mine.write_bytes(b"of another program")
    (loras / "one_2.safetensors").symlink_to(loras / "gone")
    for _ in range(2):  # pressed twice, it is there once
        page = client.post("/runs/one/comfyui", data={"file": "one.safetensors"})
        assert "It is in ComfyUI as one_3.safetensors" in page.text
    assert mine.read_bytes() == b"of another program"
    assert (loras / "one_3.safetensors").read_bytes() == file.read_bytes()
    assert sorted(path.name for path in loras.iterdir()) == [
        *("one.safetensors", "one_2.safetensors", "one_3.safetensors")
    ]
    for other in ("two.safetensors", "x" * 5000):
        answer = client.get(f"/runs/one?comfyui={other}")
        assert answer.status_code == 200 and "It is in" not in answer.text


def test_only_loras_of_the_run_go_there_and_only_while_the_folder_is_there(
    client: TestClient, make_run: Callable[..., Path], loras: Path, tmp_path: Path
) -> None:
    folder = make_run("one")
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    (folder / "one_000000005.safetensors").symlink_to(tmp_path / "secret.safetensors")
    for name in (
        "../../secret.safetensors",
        "config.yaml",
        "",
        "one_000000005.safetensors",
    ):
        answer = client.post("/runs/one/comfyui", data={"file": name})
        assert answer.status_code == 404, name
    assert [*loras.iterdir()] == []
    loras.rename(tmp_path / "away")
    answer = client.post("/runs/one/comfyui", data={"file": "one.safetensors"})
    assert answer.status_code == 409 and "is not a folder of this" in answer.text
    assert not loras.exists()


def test_without_the_folder_the_page_leads_to_it(
    client: TestClient, make_run: Callable[..., Path]
) -> None:
    make_run("one")
    assert 'href="/system#comfyui"' in client.get("/runs/one").text
    assert '<section class="card" id="comfyui">' in client.get("/system").text


@pytest.mark.slow
def test_names_that_comfyui_does_not_find_are_written_as_it_does(
    client: TestClient,
    make_run: Callable[..., Path],
    loras: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comfyui, "run_py", run_here)
    file = make_run("one") / "one.safetensors"
    prefix = f"diffusion_model.{LAYER}"
    down, up = torch.randn(4, 3072), torch.randn(12288, 4)
    old = {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}
    save_file(old | {f"{prefix}.alpha": torch.tensor(4.0)}, file, {"mine": "kept"})
    page = client.post("/runs/one/comfyui", data={"file": "one.safetensors"})
    assert "It is in ComfyUI as one.safetensors" in page.text
    written = load_file(loras / "one.safetensors")
    assert {key.partition(".lora_")[0] for key in written} <= {LAYER, f"{LAYER}.alpha"}
    assert any(value.shape == up.shape for value in written.values())
    file.write_bytes(b"cut")
    answer = client.post("/runs/one/comfyui", data={"file": "one.safetensors"})
    assert answer.status_code == 409 and "damaged" in answer.text
