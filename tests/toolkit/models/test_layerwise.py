"""The text encoder layer by layer gives the bits of the whole one."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from benchmarks import simulation
from benchmarks.live_bytes import LiveBytes
from tests.conftest import ROOT
from tests.measured import at_least, at_most
from tests.model_folders import ARCHS
from tests.toolkit.models.test_single_file import part_weights
from toolkit.config.sections.model import ModelConfig
from toolkit.data.batches.latent_cache import encoded_by_name
from toolkit.errors import RunError
from toolkit.memory.quantization import quantizer
from toolkit.models import layerwise
from toolkit.models.families import PATCHES_PER_TOKEN, ModelLoadOptions
from toolkit.models.layerwise import LayerwiseEncoder, WaitingTensors
from toolkit.models.loading import ShardReader, load_model
from toolkit.models.qwen_family import QwenFamily
from toolkit.models.qwen_image.family import FAMILY
from toolkit.models.qwen_image21.family import FAMILY as FAMILY_21

CPU = torch.device("cpu")


def open_model(folder: Path, dtype: torch.dtype = torch.float32, **keys: Any):
    section = ModelConfig(name_or_path=str(folder), **keys)
    return load_model(section, CPU, dtype, quantizer)


def prompts_of(model) -> list[tuple[str, list[Image.Image]]]:
    """Prompts of unlike lengths; where the encoder sees images, with one, two and
    none."""
    found: list[tuple[str, list[Image.Image]]] = [
        ("a cat", []),
        ("", []),
        ("a much longer caption <|im_end|>", []),
    ]
    if "processor" in model.family.encoder_parts["text_encoder"]:
        noise = torch.randint(
            0,
            256,
            (64, 96, 3),
            dtype=torch.uint8,
            generator=torch.Generator().manual_seed(0),
        )
        images = [Image.fromarray(noise.numpy()), Image.new("RGB", (64, 64), "red")]
        found += [
            ("with one", images[:1]),
            ("with two", images[: model.family.max_references]),
        ]
    return found


def together(model, folder: Path | None = None) -> list[dict[str, torch.Tensor]]:
    encodings = [lambda one=one: model.encode_prompt(*one) for one in prompts_of(model)]
    return [
        encoded_by_name(encode())
        for encode in model.encode_together(encodings, folder=folder)
    ]


def assert_same_bits(model, found: list[dict[str, torch.Tensor]]) -> None:
    """As the whole encoder gives them."""
    expected = [encoded_by_name(model.encode_prompt(*one)) for one in prompts_of(model)]
    assert len(found) == len(expected)
    for ours, whole in zip(found, expected, strict=True):
        assert ours.keys() == whole.keys()
        assert all(torch.equal(ours[name], whole[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_embeddings_are_the_bits_of_the_whole_encoder(
    folders, arch: str, monkeypatch
) -> None:
    """Each weight is read once, and no file is mapped longer than a layer is read: what
    was read of it would count as memory in use."""
    model, read, maps = open_model(folders[arch]), Counter[str](), list[str]()
    take, run = ShardReader.take, LayerwiseEncoder._run_layer

    def counted(self: ShardReader, name: str) -> torch.Tensor:
        read.update([name])
        return take(self, name)

    def watched(self: LayerwiseEncoder, name: str) -> None:
        run(self, name)
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        weights = str(model.options.folder / "text_encoder")
        maps.extend(line for line in mapped if weights in line)

    with monkeypatch.context() as patch:
        patch.setattr(ShardReader, "take", counted)
        patch.setattr(LayerwiseEncoder, "_run_layer", watched)
        found = together(model)
    assert "text_encoder" not in model._parts
    assert len(read) > 10 and set(read.values()) == {1}
    assert maps == []
    assert_same_bits(model, found)


@pytest.mark.parametrize(
    ("arch", "qtype"), [("qwen_image_edit_plus", "int8"), ("qwen_image_2", "int4")]
)
def test_a_quantized_encoder_gives_the_same_bits(
    folders, arch: str, qtype: str
) -> None:
    model = open_model(folders[arch], quantize_te=True, qtype_te=qtype)
    assert_same_bits(model, together(model))


def test_hidden_states_above_the_limit_wait_on_disk(
    folders, tmp_path: Path, monkeypatch
) -> None:
    model = open_model(folders["qwen_image_edit_plus"])
    waiting = list[WaitingTensors]()
    monkeypatch.setattr(
        layerwise,
        "WaitingTensors",
        lambda folder: waiting.append(one := WaitingTensors(folder, 0)) or one,
    )
    found = together(model, tmp_path / "not made yet")
    assert max(one.on_disk for one in waiting) > 1000
    assert list((tmp_path / "not made yet").iterdir()) == []
    assert_same_bits(model, found)


@pytest.mark.parametrize(
    ("room", "passes"), [(1, [1, 1, 1, 1, 1]), (50_000, [3, 1, 1])]
)
def test_many_prompts_are_encoded_in_parts(
    folders, room: int, passes: list[int], monkeypatch
) -> None:
    model, parts = open_model(folders["qwen_image_edit_plus"]), list[int]()
    encode = LayerwiseEncoder.encode
    monkeypatch.setattr(
        LayerwiseEncoder,
        "encode",
        lambda self, told: (parts.append(len(self._inputs)), encode(self, told))[1],
    )
    monkeypatch.setattr(layerwise, "MOST_WAITING", room)
    found = together(model)
    assert parts == passes
    assert_same_bits(model, found)


def test_a_prompt_whose_image_cannot_be_read_stops_no_other(folders) -> None:
    model = open_model(folders["qwen_image_edit_plus"])

    def unreadable() -> object:
        raise OSError("gone")

    encodings = [
        lambda: model.encode_prompt("a", []),
        unreadable,
        lambda: model.encode_prompt("b", []),
    ]
    ready = model.encode_together(encodings)
    first = next(ready)()
    with pytest.raises(OSError, match="gone"):
        next(ready)()
    last = next(ready)()
    assert torch.equal(first, open_model(model.options.folder).encode_prompt("a", []))
    assert torch.equal(last, open_model(model.options.folder).encode_prompt("b", []))


VISION_21 = {
    "hidden_size": 288,
    "intermediate_size": 1076,
    "num_heads": 4,
    "out_hidden_size": 512,
    "depth": 2,
}
VISION = {
    "hidden_size": 320,
    "intermediate_size": 855,
    "num_heads": 4,
    "out_hidden_size": 512,
    "depth": 2,
}
TEXT = {
    "num_hidden_layers": 2,
    "hidden_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "vocab_size": 1000,
    "rope_parameters": {
        "rope_theta": 1e6,
        "rope_type": "default",
        "mrope_section": [16, 24, 24],
    },
}
EIGHTHS: dict[str, tuple[QwenFamily, str, dict[str, Any], dict[str, Any], int]] = {
    "2.1": (
        FAMILY_21,
        "Qwen3VLForConditionalGeneration",
        TEXT | {"intermediate_size": 1536, "head_dim": 128},
        VISION_21 | {"deepstack_visual_indexes": [0], "patch_size": 16},
        32,
    ),
    "2509": (
        FAMILY,
        "Qwen2_5_VLForConditionalGeneration",
        TEXT | {"intermediate_size": 2700, "layer_types": ["full_attention"] * 2},
        VISION | {"fullatt_block_indexes": [1], "patch_size": 14},
        20,
    ),
}
"""Family, class in transformers, text_config and vision_config, patches along one side
of a control image: the proportions of the published encoders at about an eighth of
their width."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "images", "qtype"),
    [("2509", 0, ""), ("2509", 2, ""), ("2.1", 2, ""), ("2.1", 0, "int4")],
)
def test_the_plan_counts_what_is_on_the_device(
    name: str, images: int, qtype: str, tmp_path: Path, monkeypatch
) -> None:
    """Bytes that are alive in bfloat16, operation by operation; a GPU's kernels may
    take more for themselves."""
    dtype = torch.bfloat16
    family, kind, text, vision, side = EIGHTHS[name]
    live = LiveBytes(simulation.FOLLOWED)
    of_kind = getattr(transformers, kind)
    config = of_kind.config_class(
        text_config=text, vision_config=vision, image_token_id=999
    )
    of_kind(config).to(dtype).save_pretrained(tmp_path / "text_encoder")
    transform = quantizer(qtype) if qtype else None
    encoder = LayerwiseEncoder(
        ModelLoadOptions(tmp_path, CPU, dtype, transform_text_block=transform), kind
    )

    class OnHost(WaitingTensors):
        def put(self, key: tuple[int, str], tensor: torch.Tensor) -> None:
            with live.on_host():
                super().put(key, tensor.clone())

        def get(self, key: tuple[int, str]) -> torch.Tensor | None:
            found = super().get(key)
            return None if found is None else found.clone()

    def read(self: LayerwiseEncoder, layer: str):
        found = read_layer(self, layer)
        live.phase(layer)  # what reading takes is in the CPU memory
        return found

    read_layer = LayerwiseEncoder._read
    monkeypatch.setattr(LayerwiseEncoder, "_read", read)
    monkeypatch.setattr(layerwise, "WaitingTensors", OnHost)
    encoder.wait_in(None)
    image_tokens = images * side**2 // PATCHES_PER_TOKEN
    tokens = 180 + image_tokens
    ids_BL = torch.zeros(1, tokens, dtype=torch.int64)
    for index in range(images):
        begin = 20 + index * (side**2 // PATCHES_PER_TOKEN + 1)
        ids_BL[0, begin : begin + side**2 // PATCHES_PER_TOKEN] = 999
    inputs = {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)}
    if images:
        patch = 6 * vision["patch_size"] ** 2
        inputs["pixel_values"] = torch.zeros(images * side**2, patch)
        inputs["image_grid_thw"] = torch.tensor([[1, side, side]] * images)
        inputs["mm_token_type_ids"] = (ids_BL == 999).int()
    encoder.note(inputs)
    with live:
        (hidden_BLD,) = encoder.encode()
    assert hidden_BLD.shape == (1, tokens, 512)
    facts, number = family.footprint(tmp_path), dtype.itemsize
    per_linear = facts.bytes_per_weight[qtype] if qtype else number
    assert facts.text_layers
    planned = sum(facts.text_layers.taken(tokens, image_tokens, per_linear, number))
    taken = max(peak.device for peak in live.phases.values())
    at_most(f"{name}, {images} images, {qtype}, taken / planned", taken / planned, 1.0)
    at_least(f"{name}, {images} images, {qtype}, taken / planned", taken / planned, 0.6)


def test_one_layer_is_held_at_a_time(folders, monkeypatch) -> None:
    model = open_model(folders["qwen_image_2"])
    layers, most = list[weakref.ref](), list[int]()
    fill = layerwise.fill

    def counted(layer, *rest, **named):
        most.append(sum(one() is not None for one in layers))
        layers.append(weakref.ref(layer))
        return fill(layer, *rest, **named)

    monkeypatch.setattr(layerwise, "fill", counted)
    together(model)
    assert len(layers) > 4
    assert max(most) <= 1  # at most the one before, until the new one is complete
    encoder = model.layerwise_encoder()
    assert all(parameter.is_meta for parameter in encoder.model.parameters())


def as_a_file(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return weights


def in_codes(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The layers in fp8 with a scale each."""
    stored = {}
    for name, weight in weights.items():
        stored[name] = weight
        if ".layers." in name and weight.ndim == 2:
            stored[name] = (weight * 1000).to(torch.float8_e4m3fn)
            stored[name.removesuffix("weight") + "scale_weight"] = torch.tensor(1.37e-3)
    return stored


@pytest.mark.parametrize(
    ("stored", "shards", "keys"),
    [
        (as_a_file, 3, {}),
        (in_codes, 2, {}),
        (in_codes, 1, {"quantize_te": True, "qtype_te": "float8"}),
    ],
)
def test_files_shards_and_codes_give_the_same_bits(
    folders, stored, shards: int, keys: dict[str, Any], tmp_path: Path
) -> None:
    """Of a file in place of the folder, in as many shards; with `float8` codes stay as
    they are stored."""
    folder = folders["qwen_image_2"]
    weights = stored(part_weights(folder, "text_encoder"))
    for number in range(shards):
        names = sorted(weights)[number::shards]
        name = (
            "text.safetensors"
            if shards == 1
            else f"text-{number + 1:05d}-of-{shards:05d}.safetensors"
        )
        save_file({each: weights[each] for each in names}, tmp_path / name)
    first = sorted(tmp_path.iterdir())[0]
    model = open_model(folder, torch.bfloat16, text_encoder_path=str(first), **keys)
    found = together(model)
    assert "text_encoder" not in model._parts
    assert_same_bits(model, found)


KILLED = """
import os, signal, sys
from pathlib import Path
from toolkit.models import layerwise
from tests.toolkit.models.test_layerwise import open_model, prompts_of

model, waits = open_model(Path(sys.argv[1])), Path(sys.argv[2])
layerwise.WaitingTensors.__init__.__defaults__ = (None, 0)

def killed(done, layers):
    if done == layers - 1:
        os.kill(os.getpid(), signal.SIGKILL)

encodings = [lambda one=one: model.encode_prompt(*one) for one in prompts_of(model)]
list(model.encode_together(encodings, killed, waits))
"""


@pytest.mark.slow
def test_a_kill_while_encoding_leaves_nothing_behind(folders, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        KILLED,
        folders["qwen_image_2"],
        tmp_path / "waits",
    ]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "waits").iterdir()) == []


def test_waiting_tensors_know_what_they_hold_and_use_a_place_again(
    tmp_path: Path,
) -> None:
    waiting, tensor = WaitingTensors(tmp_path, limit=16), torch.arange(3.0)
    waiting.put((0, "a"), tensor)
    waiting.put((0, "b"), tensor + 1)
    waiting.put((0, "c"), tensor.bfloat16())
    assert (waiting.held, waiting.on_disk) == (12, 18)
    assert torch.equal(waiting.get((0, "b")), tensor + 1)
    assert torch.equal(waiting.get((0, "c")), tensor.bfloat16())
    assert waiting.get((0, "c")).data_ptr() % 64 == 0
    waiting.drop((0, "a"))
    waiting.drop((0, "b"))
    waiting.limit = 0
    waiting.put((0, "d"), tensor + 2)
    assert (waiting.held, waiting.on_disk) == (0, 18)
    assert torch.equal(waiting.get((0, "d")), tensor + 2)
    assert waiting.get((0, "a")) is None
    waiting.close()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_named(tmp_path: Path, monkeypatch) -> None:
    def full(**_: object) -> object:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(layerwise.tempfile, "TemporaryFile", full)
    with pytest.raises(RunError) as error:
        WaitingTensors(tmp_path, limit=0).put((0, "a"), torch.arange(3.0))
    reason = "what the text encoder has of the prompts cannot be written: No space left on device."
    assert str(error.value) == f"{tmp_path}: {reason}"
