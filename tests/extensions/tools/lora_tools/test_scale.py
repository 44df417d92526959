"""A LoRA file with a strength per block: written exactly, and drawn as `generate` draws
the strengths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file, save_file

from tests.running import run_job
from toolkit.config import load_job
from toolkit.config.reading.tool import load_tool
from toolkit.errors import ConfigErrors, InputErrors, UserError
from toolkit.extension import discover
from toolkit.files.safetensors_io import read_metadata
from toolkit.networks.lora_formats import LayerDelta

SIZES = {"lora_A.weight": (2, 64), "lora_B.weight": (64, 2)}


@pytest.fixture
def run(
    write_job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., None]:
    """Runs a tool with these keys, as a job in this process."""
    monkeypatch.chdir(tmp_path)
    return lambda uid, **keys: run_job(write_job({"type": uid, **keys}))


def write(
    path: Path,
    dtype: torch.dtype = torch.float32,
    ends: dict[str, tuple[int, ...]] | None = None,
    prefix: str = "",
) -> Path:
    """A file of a layer in each of two blocks, and of one in none."""
    torch.manual_seed(0)
    layers = [f"transformer_blocks.{block}.attn.to_q" for block in range(2)]
    tensors = {
        f"{prefix or 'diffusion_model.'}{layer if not prefix else layer.replace('.', '_')}.{end}": (
            0.3 * torch.randn(size)
        ).to(dtype)
        for layer in layers
        for end, size in (ends or SIZES).items()
    }
    save_file(
        tensors, path, {"base_model": "tiny", "sha256": "of another file", "rank": "2"}
    )
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_b_is_multiplied_exactly_and_nothing_else_changes(
    run, tmp_path: Path, dtype: torch.dtype
) -> None:
    before = load_file(write(tmp_path / "a.safetensors", dtype))
    run("scale", input="a.safetensors", output="b.safetensors", blocks=["1:0.7"])
    after = load_file(tmp_path / "b.safetensors")
    assert before.keys() == after.keys()
    for key, tensor in after.items():
        factor = 0.7 if ".1." in key and "lora_B" in key else 1.0
        assert torch.equal(tensor.float(), before[key].float() * factor)
        assert tensor.dtype == (torch.float32 if factor != 1 else dtype)
    run("scale", input="a.safetensors", output="half.safetensors", blocks="0-59:0.5")
    halves = load_file(tmp_path / "half.safetensors")
    # half of each number is one of the dtype
    assert {tensor.dtype for tensor in halves.values()} == {dtype}


def test_the_metadata_tell_what_was_done_to_it(run, tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    run("scale", input="a.safetensors", output="b.safetensors", blocks=["0:0.5", "1:2"])
    run("scale", input="b.safetensors", output="c.safetensors", blocks="1:0")
    metadata = read_metadata(tmp_path / "c.safetensors")
    assert (
        metadata["block_strengths"] == "0:0.5 1:2; 1:0"
        and metadata["base_model"] == "tiny"
    )
    assert metadata["sha256"] != "of another file" and metadata["rank"] == "2"
    assert not load_file(tmp_path / "c.safetensors")[
        "diffusion_model.transformer_blocks.1.attn.to_q.lora_B.weight"
    ].any()


@pytest.mark.parametrize(
    ("ends", "scaled"),
    [
        (
            {"lora_down.weight": (2, 64), "lora_up.weight": (64, 2), "alpha": ()},
            "lora_up.weight",
        ),
        (
            {
                "hada_w1_a": (64, 2),
                "hada_w1_b": (2, 64),
                "hada_w2_a": (64, 2),
                "hada_w2_b": (2, 64),
            },
            "hada_w1_a",
        ),
        ({"lokr_w1": (8, 8), "lokr_w2": (8, 8)}, "lokr_w1"),
        (
            {"lokr_w1_a": (8, 2), "lokr_w1_b": (2, 8), "lokr_w2": (8, 8), "alpha": ()},
            "lokr_w1_a",
        ),
    ],
)
def test_of_each_kind_one_factor_is_scaled(
    run, tmp_path: Path, ends: dict, scaled: str
) -> None:
    before = load_file(
        write(tmp_path / "a.safetensors", ends=ends, prefix="lora_unet_")
    )
    run("scale", input="a.safetensors", output="b.safetensors", blocks="1:0.25")
    after = load_file(tmp_path / "b.safetensors")
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed == {f"lora_unet_transformer_blocks_1_attn_to_q.{scaled}"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("0-9", "'0-9' is not FIRST-LAST:STRENGTH. Write 0-9:0.5"),
        ("9-0:1", "the first block comes first"),
        ("0:1000", "a strength is -100 to 100"),
        (["0-3:1", "2:0"], "'2:0' names a block that another entry names too"),
        ([], "is required: the blocks"),
    ],
)
def test_wrong_entries_are_told_with_the_right_form(
    write_job, tmp_path: Path, given: object, told: str
) -> None:
    write(tmp_path / "a.safetensors")
    job = {
        "type": "scale",
        "input": str(tmp_path / "a.safetensors"),
        "output": "b.safetensors",
        "blocks": given,
    }
    with pytest.raises(ConfigErrors, match=told):
        load_job(write_job(job), discover().find_config)


def test_flags_are_read_as_they_are_typed(tmp_path: Path) -> None:
    file, model = (
        str(write(tmp_path / "a.safetensors")),
        discover().find_command("scale"),
    )
    assert model is not None
    job = load_tool(
        "scale",
        model,
        [file, str(tmp_path / "b.safetensors"), "--blocks", "1:30", "2:0"],
    )
    assert job.processes[0].section.blocks == ("1:30", "2:0")  # no times of a day
    with pytest.raises(InputErrors, match="so it is never replaced"):
        load_tool("scale", model, [file, file, "--blocks", "1:0"])


def test_what_cannot_be_scaled_is_refused(run, tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    with pytest.raises(
        UserError, match=r"changes none of blocks 5 to 9. It has blocks 0 to 1"
    ):
        run("scale", input="a.safetensors", output="b.safetensors", blocks="5-9:0")
    write(tmp_path / "dora.safetensors", ends=SIZES | {"dora_scale": (1, 64)})
    with pytest.raises(UserError, match="is a DoRA"):
        run("scale", input="dora.safetensors", output="b.safetensors", blocks="0:0")
    with pytest.raises(UserError, match="no strength per block"):
        LayerDelta(
            {
                "up": torch.ones(4, 1),
                "down": torch.ones(1, 4),
                "dora_scale": torch.ones(1, 4),
            },
            1.0,
        ).times(0.5)
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.slow
def test_a_scaled_file_draws_what_generate_draws_with_the_strengths(
    run, tmp_path: Path, tiny_model: Path
) -> None:
    write(tmp_path / "a.safetensors")
    run("scale", input="a.safetensors", output="b.safetensors", blocks=["0:4", "1:0"])
    same = {
        "prompt": "a cat",
        "width": 64,
        "height": 64,
        "steps": 2,
        "model": {"name_or_path": str(tiny_model)},
    }
    same |= {"dtype": "float32", "device": "cpu"}
    run("generate", lora="b.safetensors", output="baked", **same)
    run("generate", lora="a.safetensors", blocks=["0:4", "1:0"], output="given", **same)
    run("generate", lora="a.safetensors", output="whole", **same)
    baked, given, whole = (
        Image.open(next((tmp_path / name).glob("*.png")))
        for name in ("baked", "given", "whole")
    )
    assert (
        ImageChops.difference(baked.convert("RGB"), given.convert("RGB")).getbbox()
        is None
    )
    assert (
        ImageChops.difference(baked.convert("RGB"), whole.convert("RGB")).getbbox()
        is not None
    )
    run("generate", like=str(next((tmp_path / "given").glob("*.png"))), output="again")
    again = next((tmp_path / "again").glob("*.png"))
    assert again.name == next((tmp_path / "given").glob("*.png")).name
