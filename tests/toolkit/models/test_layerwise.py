"""The text encoder layer by layer gives the bits of the whole one."""

from __future__ import annotations

import shutil
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.model_folders import ARCHS
from toolkit.config.model import ModelConfig
from toolkit.data.latent_cache import encoded_by_name
from toolkit.errors import RunError
from toolkit.memory.quantization import quantizer
from toolkit.models import layerwise
from toolkit.models.layerwise import LayerwiseEncoder, WaitingTensors
from toolkit.models.loading import ShardReader, load_model

CPU = torch.device("cpu")


def open_model(folder: Path, dtype: torch.dtype = torch.float32, **keys: Any):
    section = ModelConfig(name_or_path=str(folder), **keys)
    return load_model(section, CPU, dtype, quantizer)


def prompts_of(model) -> list[tuple[str, list[Image.Image]]]:
    """Prompts of unlike lengths; where the encoder sees images, with one, two and none."""
    found: list[tuple[str, list[Image.Image]]] = [("a cat", []), ("", []), ("a much longer caption <|im_end|>", [])]
    if "processor" in model.family.encoder_parts["text_encoder"]:
        noise = torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        images = [Image.fromarray(noise.numpy()), Image.new("RGB", (64, 64), "red")]
        found += [("with one", images[:1]), ("with two", images[: model.family.max_references])]
    return found


def together(model) -> list[dict[str, torch.Tensor]]:
    encodings = [lambda one=one: model.encode_prompt(*one) for one in prompts_of(model)]
    return [encoded_by_name(encode()) for encode in model.encode_together(encodings)]


def assert_same_bits(model, found: list[dict[str, torch.Tensor]]) -> None:
    """As the whole encoder gives them."""
    expected = [encoded_by_name(model.encode_prompt(*one)) for one in prompts_of(model)]
    assert len(found) == len(expected)
    for ours, whole in zip(found, expected, strict=True):
        assert ours.keys() == whole.keys()
        assert all(torch.equal(ours[name], whole[name]) for name in whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("arch", ARCHS)
def test_embeddings_are_the_bits_of_the_whole_encoder(folders, arch: str, dtype: torch.dtype) -> None:
    model = open_model(folders[arch], dtype)
    found = together(model)
    assert "text_encoder" not in model._parts
    assert_same_bits(model, found)


@pytest.mark.parametrize("qtype", ["int8", "int4"])
@pytest.mark.parametrize("arch", ["qwen_image_edit_plus", "qwen_image_2"])
def test_a_quantized_encoder_gives_the_same_bits(folders, arch: str, qtype: str) -> None:
    model = open_model(folders[arch], quantize_te=True, qtype_te=qtype)
    assert_same_bits(model, together(model))


@pytest.mark.parametrize("arch", ["qwen_image_edit_plus", "qwen_image_2"])
def test_hidden_states_above_the_limit_wait_in_files(folders, arch: str, monkeypatch) -> None:
    model, written = open_model(folders[arch]), list[Path]()
    save = layerwise.save_file
    monkeypatch.setattr(layerwise, "save_file", lambda one, path: (written.append(path), save(one, path)))
    make = model.layerwise_encoder

    def without_memory(device: torch.device) -> LayerwiseEncoder:
        encoder = make(device)
        encoder.limit = 0
        return encoder

    monkeypatch.setattr(model, "layerwise_encoder", without_memory)
    found = together(model)
    assert written
    assert not any(path.exists() for path in written)
    assert_same_bits(model, found)


@pytest.mark.parametrize("limit", ["MOST_PIXELS", "MOST_HIDDEN"])
def test_many_prompts_are_encoded_in_parts(folders, limit: str, monkeypatch) -> None:
    model, parts = open_model(folders["qwen_image_edit_plus"]), list[int]()
    encode = LayerwiseEncoder.encode
    monkeypatch.setattr(
        LayerwiseEncoder, "encode", lambda self, one, told: (parts.append(len(one)), encode(self, one, told))[1]
    )
    monkeypatch.setattr(layerwise, limit, 1)
    found = together(model)
    assert parts == {"MOST_PIXELS": [4, 1], "MOST_HIDDEN": [1, 1, 1, 1, 1]}[limit]
    assert_same_bits(model, found)


def test_a_prompt_whose_image_cannot_be_read_stops_no_other(folders) -> None:
    model = open_model(folders["qwen_image_edit_plus"])

    def unreadable() -> object:
        raise OSError("gone")

    encodings = [lambda: model.encode_prompt("a", []), unreadable, lambda: model.encode_prompt("b", [])]
    ready = model.encode_together(encodings)
    first = next(ready)()
    with pytest.raises(OSError, match="gone"):
        next(ready)()
    last = next(ready)()
    assert torch.equal(first, open_model(model.options.folder).encode_prompt("a", []))
    assert torch.equal(last, open_model(model.options.folder).encode_prompt("b", []))


@pytest.mark.parametrize("arch", ARCHS)
def test_each_weight_is_read_once(folders, arch: str, monkeypatch) -> None:
    model, read = open_model(folders[arch]), Counter[str]()
    take = ShardReader.take
    monkeypatch.setattr(ShardReader, "take", lambda self, name: (read.update([name]), take(self, name))[1])
    together(model)
    assert len(read) > 10
    assert set(read.values()) == {1}


def test_one_layer_is_held_at_a_time(folders, monkeypatch) -> None:
    model, layers, most = open_model(folders["qwen_image_2"]), list[weakref.ref](), list[int]()
    fill = layerwise.fill

    def counted(layer, *rest, **named):
        most.append(sum(one() is not None for one in layers))
        layers.append(weakref.ref(layer))
        return fill(layer, *rest, **named)

    monkeypatch.setattr(layerwise, "fill", counted)
    together(model)
    assert len(layers) > 4
    assert max(most) <= 1  # at most the one before, until the new one is complete
    encoder = model.layerwise_encoder(CPU)
    assert all(parameter.is_meta for parameter in encoder.model.parameters())


def test_a_damaged_shard_is_named(folders, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["qwen_image"], folder)
    model = open_model(folder)  # which checks the files as they are now
    shard = next((folder / "text_encoder").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(RunError) as error:
        together(model)
    assert str(error.value).startswith(f"{shard}: damaged (")
    assert str(error.value).endswith("Copy or download the model again.")


def test_waiting_tensors_know_what_they_hold(tmp_path: Path) -> None:
    waiting, tensor = WaitingTensors(tmp_path, limit=16), torch.arange(3.0)
    waiting.put((0, "a"), tensor)
    waiting.put((0, "b"), tensor + 1)
    assert waiting.held == 12
    assert len(list(tmp_path.iterdir())) == 1
    assert torch.equal(waiting.get((0, "b")), tensor + 1)
    waiting.drop((0, "a"))
    waiting.drop((0, "b"))
    assert (waiting.held, list(tmp_path.iterdir())) == (0, [])
