import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from safetensors.torch import load_file, save_file

from tests.diffusers_reference import CPU, open_tiny, rewrite_json
from tests.faults.nursery import Nursery
from toolkit.errors import RunError, UserError
from toolkit.flow.sampler import sigmas
from toolkit.memory.quantization import quantizer
from toolkit.memory.stored_blocks import describe, restore
from toolkit.models.families import ModelLoadOptions
from toolkit.models.folder_family import dynamic_shift
from toolkit.models.kept import Kept
from toolkit.models.loading import WEIGHTS
from toolkit.models.qwen_image import loading
from toolkit.models.qwen_image.loading import TEXT_ENCODER, load_transformer
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.models.vl_prompts import load_text_model, load_tokenizer

INDEX = f"{WEIGHTS}.index.json"


def options(
    folder: Path, dtype: torch.dtype = torch.float32, **more
) -> ModelLoadOptions:
    return ModelLoadOptions(folder=folder, device=CPU, dtype=dtype, **more)


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may damage."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_a_vae_with_weights_of_an_absent_part_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite_json(copy / "vae" / "config.json", _more=True)
    monkeypatch.setitem(
        loading.VAE_ADDITIONS, "_more", "extensions.no_such_part.x:load"
    )
    with pytest.raises(
        UserError,
        match=r"vae' \('_more' in its config\) needs the extension 'no_such_part'",
    ):
        loading.load_vae(copy / "vae", torch.float32)


@pytest.fixture
def single(copy: Path) -> Path:
    """A copy with the transformer in one file."""
    part = copy / "transformer"
    weights: dict[str, torch.Tensor] = {}
    for shard in sorted(part.glob("*.safetensors")):
        weights |= load_file(shard)
        shard.unlink()
    save_file(weights, part / WEIGHTS)
    (part / INDEX).unlink()
    return copy


# ---------------------------------------------------------------- the transformer


def test_sharded_and_single_file_give_the_weights_that_diffusers_reads(
    tiny_model: Path, single: Path
) -> None:
    assert len(list((tiny_model / "transformer").glob("*.safetensors"))) > 1
    theirs = QwenImageTransformer2DModel.from_pretrained(
        tiny_model / "transformer"
    ).state_dict()
    for folder in (tiny_model, single):
        ours = load_transformer(options(folder)).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_transformer_is_frozen_and_in_the_asked_dtype(tiny_model: Path) -> None:
    model = load_transformer(options(tiny_model, torch.bfloat16))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


def test_weights_do_not_keep_the_file_open(single: Path) -> None:
    """The weights are copied out of the memory map: a file that changes later changes
    nothing."""
    model = load_transformer(options(single))
    before = model.img_in.weight.clone()
    with (single / "transformer" / WEIGHTS).open("r+b") as file:
        file.seek(-1000, 2)
        size = file.tell()
        file.seek(0)
        file.write(b"\0" * size)
    assert torch.equal(model.img_in.weight, before)


def test_every_size_comes_from_the_config(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "other", TinySpec(layers=3, heads=3))
    model = load_transformer(options(tmp_path / "other"))
    assert len(model.transformer_blocks) == 3
    assert model.transformer_blocks[2].attn.to_q.weight.shape == (96, 96)


def test_each_block_is_transformed_once_when_it_is_filled(tiny_model: Path) -> None:
    seen = []
    model = load_transformer(
        options(
            tiny_model,
            transform_block=lambda block, name: seen.append(
                (name, block.attn.to_q.weight)
            ),
        )
    )
    names, weights = zip(*seen, strict=True)
    assert names == ("transformer_blocks.0", "transformer_blocks.1")
    assert [weight.device.type for weight in weights] == ["cpu", "cpu"]
    assert [
        block.attn.to_q.weight is weight
        for block, weight in zip(model.transformer_blocks, weights, strict=True)
    ]


# ---------------------------------------------------------------- the other parts


def test_the_tokenizer_reads_either_layout(copy: Path, tmp_path: Path) -> None:
    assert not (copy / "tokenizer" / "tokenizer.json").exists()
    from_vocabulary = load_tokenizer(copy / "tokenizer")
    other = tmp_path / "other" / "tokenizer"
    other.mkdir(parents=True)
    from_vocabulary.backend_tokenizer.save(str(other / "tokenizer.json"))
    shutil.copy(copy / "tokenizer" / "tokenizer_config.json", other)
    from_json = load_tokenizer(other.parent / "tokenizer")
    assert sorted(path.name for path in other.iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    text = "<|im_start|>user\nPicture 1: <|vision_start|><|image_pad|><|vision_end|>Ünïcode, a cat's cup<|im_end|>\n"
    ids = from_vocabulary(text)["input_ids"]
    assert from_json(text)["input_ids"] == ids
    assert from_vocabulary.decode(ids) == text
    # one token, not its bytes
    assert from_vocabulary.convert_tokens_to_ids("<|image_pad|>") in ids


def test_the_text_encoder_has_no_language_model_head_and_its_layers_are_transformed(
    tiny_model: Path,
) -> None:
    seen = []
    part = tiny_model / "text_encoder"
    model = load_text_model(
        part,
        TEXT_ENCODER,
        torch.float32,
        lambda block, name: seen.append((name, block)),
    )
    assert seen == [
        (f"language_model.layers.{i}", layer)
        for i, layer in enumerate(model.language_model.layers)
    ]
    assert not hasattr(model, "lm_head") and not any(
        p.requires_grad for p in model.parameters()
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"shift_terminal": 0.0},
        {"use_dynamic_shifting": False, "shift": 3.0},
        {"use_dynamic_shifting": False, "shift": 3.0, "shift_terminal": None},
        {"base_shift": 0.9, "max_shift": 0.3, "base_image_seq_len": 64},
    ],
    ids=str,
)
def test_noise_levels_of_any_scheduler_config_are_diffusers(
    copy: Path, changes: dict[str, object]
) -> None:
    rewrite_json(copy / "scheduler" / "scheduler_config.json", **changes)
    theirs, shift = (
        FlowMatchEulerDiscreteScheduler.from_pretrained(copy / "scheduler"),
        dynamic_shift(copy),
    )
    config = theirs.config
    mu = calculate_shift(
        500,
        config.base_image_seq_len,
        config.max_image_seq_len,
        config.base_shift,
        config.max_shift,
    )
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / 7, 7), mu=mu)
    ours = sigmas(7, shift.mu(500, 7), shift.shift_terminal)
    torch.testing.assert_close(ours, theirs.sigmas, rtol=0, atol=1e-6)


def test_the_variant_of_a_quantized_text_encoder_is_part_of_its_identity(
    tiny_model: Path,
) -> None:
    plain, quantized = (
        open_tiny(tiny_model),
        open_tiny(tiny_model, text_encoder_cache_tag="int8"),
    )
    assert plain.cache_key("vae") == quantized.cache_key("vae")
    assert plain.cache_key("text_encoder") != quantized.cache_key("text_encoder")


# ---------------------------------------------------------------- memory

LARGE = {
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 6,
    "attention_head_dim": 128,
    "num_attention_heads": 8,
    "joint_attention_dim": 64,
    "axes_dims_rope": [16, 56, 56],
}


def anonymous_bytes() -> int:
    """Of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def main(arguments: Sequence[str]) -> int:
    """Loads the model of a folder, with a second one as its kept model, in a separate
    process. Prints bytes of anonymous memory before, at the most, and after."""
    folder, *kept = map(Path, arguments)
    torch.nn.Linear(64, 64)(torch.zeros(1, 64))
    quantizer("int8")(torch.nn.Sequential(torch.nn.Linear(64, 64)), "")
    baseline = peak = anonymous_bytes()
    is_done = Event()

    def watch() -> None:
        nonlocal peak
        while not is_done.wait(0.002):
            peak = max(peak, anonymous_bytes())

    watching = Thread(target=watch)
    watching.start()
    entry = Kept(kept[0], "int8", 0, "large", describe, restore) if kept else None
    model = load_transformer(
        options(
            folder,
            torch.bfloat16,
            transform_block=quantizer("int8"),
            kept=entry,
            cpu_blocks=frozenset(range(1, 6)),
        )
    )
    is_done.set()
    watching.join()
    end = anonymous_bytes()
    print(json.dumps({"baseline": baseline, "peak": peak, "end": end}))
    del model  # it is alive until here
    return 0


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer of about 400 MB in bfloat16, in several shards."""
    folder = tmp_path_factory.mktemp("large")
    with torch.device("meta"):
        model = QwenImageTransformer2DModel(**LARGE).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.05, 0.05)
    model.save_pretrained(folder / "transformer", max_shard_size="120MB")
    return folder


@pytest.fixture(scope="module")
def loaded(
    nursery: Nursery, large_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, int]]:
    """What `main` prints of the large model."""

    def load(*kept: Path) -> dict[str, int]:
        cwd = tmp_path_factory.mktemp("loaded")
        nursery.fork([large_model, *kept], cwd, "main", main=__name__).ends_with(0)
        return json.loads((cwd / "main.out").read_text())

    return load


@pytest.fixture(scope="module")
def plain(loaded: Callable[..., dict[str, int]]) -> dict[str, int]:
    """Without a kept model."""
    return loaded()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux")
def test_blocks_that_wait_in_the_kept_model_are_never_in_memory(
    large_model: Path,
    loaded: Callable[..., dict[str, int]],
    plain: dict[str, int],
    tmp_path: Path,
) -> None:
    """Of six blocks five wait: neither the start that writes them, nor one that reads
    them, holds them."""
    part = large_model / "transformer"
    waiting = (
        5 / 6 * sum(path.stat().st_size for path in part.glob("*.safetensors")) / 2
    )
    for start in ("first", "second"):
        kept = loaded(tmp_path)
        assert (
            kept["end"] - kept["baseline"]
            <= plain["end"] - plain["baseline"] - 0.9 * waiting
        ), start
        assert (
            kept["peak"] - kept["baseline"]
            <= plain["peak"] - plain["baseline"] - 0.5 * waiting
        ), start


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux")
def test_a_transformer_is_quantized_block_by_block_as_it_is_read(
    large_model: Path, plain: dict[str, int]
) -> None:
    """Peak of the anonymous memory, above the imports: the quantized weights, 1.5
    blocks and 150 MB at most."""
    part = large_model / "transformer"
    stored = sum(path.stat().st_size for path in part.glob("*.safetensors"))
    assert stored > 350e6 and len(list(part.glob("*.safetensors"))) >= 3

    block = stored / LARGE["num_layers"]  # nearly everything is in the blocks
    quantized = stored / 2
    above = plain["peak"] - plain["baseline"]
    assert above <= quantized + 1.5 * block + 150e6
    assert above >= quantized * 0.9, (
        "the weights must be in memory, or nothing was measured"
    )


# ---------------------------------------------------------------- every part is loaded
# strictly


def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = max(weights)
    return {
        ("renamed" if key == name else key): tensor for key, tensor in weights.items()
    }


def cut(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = min(name for name, tensor in weights.items() if tensor.ndim == 1)
    return weights | {name: weights[name][:-1].clone()}


def spoilt(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = max(weights)
    tensor = weights[name].clone()
    tensor.view(-1)[-1] = float("inf")
    return weights | {name: tensor}


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (renamed, "missing weights: "),
        (
            lambda weights: weights | {"more": torch.ones(1)},
            "does not account for: more",
        ),
        (cut, "config.json says ("),
        (spoilt, "not finite: "),
    ],
    ids=["renamed", "added", "cut", "infinite"],
)
def test_weights_that_are_not_those_of_the_config_are_named(
    single: Path,
    part: str,
    change: Callable,
    words: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = next(iter((single / part).glob("*.safetensors")))
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(RunError) as raised:
        open_tiny(single).part(part)
    assert str(raised.value).startswith(f"{single / part}: ") and words in str(
        raised.value
    )
    # the libraries' own reports, of many lines, are left out
    assert capfd.readouterr().err == ""
