"""`model.name_or_path` as the file of a transformer: its weights identify the model,
and its other parts are found around it, or one line says why not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from tests.model_folders import COMMIT, write_header
from tests.quantized import mark
from tests.toolkit.models.test_single_file import (
    as_comfyui,
    assert_equal,
    part_weights,
    weights_of,
)
from toolkit.config.reading.process import JobContext
from toolkit.config.sections.model import ModelConfig
from toolkit.memory.quantization import quantizer
from toolkit.models.families import family_for
from toolkit.models.loading import base_hashes, load_model

NAMES = {
    "qwen_image": ("Qwen/Qwen-Image-2512", "qwen_image_2512_bf16.safetensors"),
    "qwen_image_edit": ("Qwen/Qwen-Image-Edit", "qwen_image_edit_bf16.safetensors"),
    "qwen_image_edit_plus": (
        "Qwen/Qwen-Image-Edit-2509",
        "Qwen-Image-Edit-2509 (mine).SAFETENSORS",
    ),
    "qwen_image_2": ("Qwen/Qwen-Image-2.1", "anything.safetensors"),
    "qwen_image_layered": ("Qwen/Qwen-Image-Layered", "anything.safetensors"),
}
"""Hub id and a file's name of each family."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a model into an empty hub cache: by default without its weights."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(folder: Path, name: str, without: str = "*.safetensors*") -> Path:
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(
            folder,
            repository / "snapshots" / COMMIT,
            ignore=shutil.ignore_patterns(without),
        )
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        return repository / "snapshots" / COMMIT

    return put


def write_comfyui(root: Path, folder: Path, name: str) -> Path:
    """The parts of a model folder as ComfyUI keeps them, in bf16; the transformer's
    file."""
    models = root / "models"
    file = models / "diffusion_models" / name
    for part in ("diffusion_models", "vae/qwen", "text_encoders"):
        (models / part).mkdir(parents=True, exist_ok=True)
    save_file(
        as_comfyui(
            {name: weight.bfloat16() for name, weight in weights_of(folder).items()}
        ),
        file,
    )
    save_file(part_weights(folder, "vae"), models / "vae" / "qwen" / "vae.safetensors")
    save_file(
        part_weights(folder, "text_encoder"),
        models / "text_encoders" / "text.safetensors",
    )
    return file


def all_weights(section: ModelConfig) -> dict[str, torch.Tensor]:
    model = load_model(section, torch.device("cpu"), torch.bfloat16, quantizer)
    parts = {
        "transformer": model.network_module,
        **{part: model.part(part) for part in ("vae", "text_encoder")},
    }
    return {
        f"{part}.{name}": weight
        for part, module in parts.items()
        for name, weight in module.state_dict().items()
    }


def fault_of(file: Path | str, **keys: object) -> str:
    found = list(ModelConfig(name_or_path=str(file), **keys).check(JobContext("job")))
    assert all(
        one.key == ("name_or_path",) and "\n" not in one.message for one in found
    )
    return ", ".join(one.message for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["qwen_image_edit_plus", "qwen_image_2"])
def test_a_transformers_file_gives_the_bits_of_its_folder(
    arch: str, folders: dict[str, Path], cache: Callable[..., Path], tmp_path: Path
) -> None:
    cache(folders[arch], NAMES[arch][0])
    file = write_comfyui(tmp_path / "Comfy Ü", folders[arch], NAMES[arch][1])
    section = ModelConfig(name_or_path=str(file))
    assert fault_of(file) == "" and section.name_or_path == NAMES[arch][0]
    assert family_for(section).arch == arch
    assert_equal(
        all_weights(section), all_weights(ModelConfig(name_or_path=str(folders[arch])))
    )
    assert section.vae_path == str(
        tmp_path / "Comfy Ü" / "models" / "vae" / "qwen" / "vae.safetensors"
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("qwen_image_2.1_turbo_bf16", "-Turbo"),
        ("qwen_image_2.1_bf16", ""),
        ("my_turbo", ""),
    ],
)
def test_a_distilled_model_with_the_weights_names_of_its_base_has_to_be_named(
    name: str,
    told: str,
    folders: dict[str, Path],
    cache: Callable[..., Path],
    tmp_path: Path,
) -> None:
    cache(folders["qwen_image_2"], f"Qwen/Qwen-Image-2.1{told}")
    section = ModelConfig(
        name_or_path=str(
            write_comfyui(tmp_path, folders["qwen_image_2"], f"{name}.safetensors")
        )
    )
    assert section.name_or_path == f"Qwen/Qwen-Image-2.1{told}"


def test_parts_are_found_beside_the_file_and_through_links(
    folders: dict[str, Path], cache: Callable[..., Path], tmp_path: Path
) -> None:
    folder = folders["qwen_image_2"]
    cache(folder, "Qwen/Qwen-Image-2.1")
    file = write_comfyui(tmp_path / "comfy", folder, "a.safetensors")
    models = tmp_path / "comfy" / "models"
    (models / "clip").symlink_to("text_encoders")  # two ways to one file are one
    (models / "vae" / "back").symlink_to("..")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dit").symlink_to(models / "diffusion_models")
    linked = ModelConfig(name_or_path=str(tmp_path / "home" / "dit" / "a.safetensors"))
    assert Path(linked.text_encoder_path or "").samefile(
        models / "text_encoders" / "text.safetensors"
    )
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (
        file,
        models / "vae" / "qwen" / "vae.safetensors",
        models / "text_encoders" / "text.safetensors",
    ):
        shutil.copy(path, flat / path.name)
    section = ModelConfig(name_or_path=str(flat / "a.safetensors"))
    assert (section.vae_path, section.text_encoder_path) == (
        str(flat / "vae.safetensors"),
        str(flat / "text.safetensors"),
    )
    # a run goes on wherever the files are
    assert base_hashes(section) == base_hashes(linked)


@pytest.mark.slow
def test_the_model_folder_that_a_file_lies_in_is_its_model(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "my_model"
    shutil.copytree(folders["qwen_image_edit"], folder)
    file = sorted((folder / "transformer").glob("*.safetensors"))[0]
    section = ModelConfig(name_or_path=str(file))
    assert (section.name_or_path, section.vae_path) == (str(folder), None)
    assert_equal(
        all_weights(section), all_weights(ModelConfig(name_or_path=str(folder)))
    )
    next((folder / "vae").glob("*.safetensors")).unlink()
    assert f"of its ComfyUI, or in {folder}. Give model.vae_path." in fault_of(file)


def test_a_quantized_part_of_the_folder_that_a_file_lies_in_is_named(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(folders["qwen_image_edit_plus"], model)
    file = sorted((model / "transformer").glob("*.safetensors"))[0]
    place = mark(model / "text_encoder" / "config.json")
    assert (
        f"{place}the text_encoder is quantized by sdnq (uint4), which is not read."
        in fault_of(file)
    )


def test_weights_in_the_hub_cache_stand_for_parts_that_no_file_gives(
    folders: dict[str, Path], cache: Callable[..., Path], tmp_path: Path
) -> None:
    cache(folders["qwen_image"], "Qwen/Qwen-Image", without="diffusion_pytorch_model.x")
    file = tmp_path / "qwen-image.safetensors"
    save_file(weights_of(folders["qwen_image"]), file)
    section = ModelConfig(name_or_path=str(file))
    assert (
        fault_of(file) == ""
        and section.vae_path is None
        and section.name_or_path == "Qwen/Qwen-Image"
    )


@pytest.mark.parametrize(
    ("name", "marker", "keys", "told"),
    [
        (
            "qwen_image_edit_2511_fp8.safetensors",
            False,
            {},
            "Qwen/Qwen-Image-Edit-2511",
        ),
        ("mine.safetensors", True, {}, "Qwen/Qwen-Image-Edit-2511"),
        ("mine.safetensors", False, {"arch": "edit-2511"}, "Qwen/Qwen-Image-Edit-2511"),
        (
            "mine.safetensors",
            False,
            {"arch": "qwen_image_edit_plus:2509"},
            "Qwen/Qwen-Image-Edit-2509",
        ),
        ("mine.safetensors", False, {"arch": "qwen_image"}, "Qwen/Qwen-Image"),
        (
            "Qwen-Image-2512-bf16.safetensors",
            False,
            {"arch": "qwen_image"},
            "Qwen/Qwen-Image-2512",
        ),
        ("qwen_image_bf16.safetensors", False, {}, "Qwen/Qwen-Image"),
        (
            "mine.safetensors",
            False,
            {},
            "its name does not say which. Give model.arch: qwen_image_edit_plus:2509 or ",
        ),
        ("qwen_image_rapid_edit.safetensors", False, {}, "its name does not say which"),
        (
            "mine.safetensors",
            False,
            {"arch": "qwen_image_edit_plus:2509"},
            "Qwen/Qwen-Image-Edit-2509",
        ),
        (
            "mine.safetensors",
            False,
            {"arch": "qwen_image_edit_plus"},
            "it may be Qwen-Image-Edit-2509, Qwen-Image-E",
        ),
        (
            "qwen_image_2512.safetensors",
            False,
            {"arch": "qwen_image_2"},
            "which model.arch 'qwen_image_2' is not",
        ),
        (
            "qwen_image_2512.safetensors",
            True,
            {"arch": "qwen_image"},
            "it is Qwen-Image-Edit-2511, which model.arch",
        ),
    ],
)
def test_models_with_the_same_weights_are_told_apart(
    name: str,
    marker: bool,
    keys: dict[str, str],
    told: str,
    folders: dict[str, Path],
    cache: Callable[..., Path],
    tmp_path: Path,
) -> None:
    cache(folders["qwen_image"], "other/model")
    weights = weights_of(folders["qwen_image"]) | (
        {"__index_timestep_zero__": torch.zeros(0)} if marker else {}
    )
    file = write_comfyui(tmp_path, folders["qwen_image"], name)
    save_file(weights, file)
    vae, text = (
        tmp_path / "models" / part
        for part in ("vae/qwen/vae.safetensors", "text_encoders/text.safetensors")
    )
    section = ModelConfig(
        name_or_path=str(file), vae_path=str(vae), text_encoder_path=str(text), **keys
    )
    if told.startswith("Qwen/"):
        assert section.name_or_path == told
    else:
        assert told in section.file_fault


def other(names: str) -> Callable[[Path], None]:
    return lambda file: save_file(
        {name: torch.zeros(2) for name in names.split()}, file
    )


LORA = "diffusion_model.transformer_blocks.0.attn.to_q.lora_A.weight"


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (
            lambda file: file.write_bytes(b"GGUF" + bytes(100)),
            "is a GGUF file, which is not read. Give the bf16 file",
        ),
        (
            lambda file: file.write_bytes(bytes([200, 0, 0, 0, 0, 0, 0, 0]) + b"{}"),
            "its header is cut off",
        ),
        (lambda file: file.write_bytes(b""), "damaged weights"),
        (
            other("double_blocks.0.img_attn.qkv.weight"),
            "is another model: this is FLUX.1. Give a transformer of",
        ),
        (
            other("decoder.conv_in.weight"),
            "is a VAE: that is model.vae_path. Give the transformer as",
        ),
        (
            other("model.embed_tokens.weight visual.patch_embed.proj.weight"),
            "that is model.text_encoder_path. Give",
        ),
        (other(LORA), "It is a LoRA: give the model, and the file as model.base_loras"),
        (
            other("a b c d"),
            "has no transformer of a model that can be trained; its weights: a, b, c. Give another",
        ),
    ],
)
def test_a_file_that_is_something_else_is_answered_in_one_line(
    write: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    write(file)
    assert said in fault_of(file) and str(file) in fault_of(file)


@pytest.mark.slow
def test_parts_that_are_missing_or_several_are_named_with_their_key(
    folders: dict[str, Path], cache: Callable[..., Path], tmp_path: Path
) -> None:
    folder = folders["qwen_image"]
    cache(folder, "Qwen/Qwen-Image-2512")
    file = write_comfyui(tmp_path, folder, "qwen_image_2512.safetensors")
    encoders, vae = (
        tmp_path / "models" / "text_encoders",
        tmp_path / "models" / "vae" / "qwen" / "vae.safetensors",
    )
    # fits another
    save_file(
        part_weights(folders["qwen_image_2"], "text_encoder"),
        encoders / "qwen3.safetensors",
    )
    assert fault_of(file) == ""
    shutil.copy(encoders / "text.safetensors", encoders / "more.safetensors")
    fault = f"{encoders / 'more.safetensors'}, {encoders / 'text.safetensors'} fit it. Choose one with model.text_enc"
    assert fault in fault_of(file)
    assert fault_of(file, text_encoder_path=str(encoders / "more.safetensors")) == ""
    (encoders / "more.safetensors").unlink()
    weights = load_file(vae)
    weights.pop("decoder.conv_in.bias")
    save_file(weights, vae)
    fault = (
        "no file of a VAE is beside it, in vae of its ComfyUI, or in the hub cache "
        f"of Qwen/Qwen-Image-2512 ({vae}: mi"
    )
    assert fault in fault_of(
        file
    ) and "Give model.vae_path, or name_or_path: Qwen/Qwen-Image-2512" in fault_of(file)
    assert "so is transformer_path. Remove one" in fault_of(
        file, transformer_path=str(file)
    )


def test_configs_that_are_not_here_are_downloaded_or_named(
    folders: dict[str, Path],
    cache: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The published sizes then count, so the weights have them."""
    family = family_for(ModelConfig(name_or_path="Qwen/Qwen-Image-2.1"))
    cache(folders["qwen_image"], "other/model")
    file = tmp_path / "a.safetensors"
    write_header(family.weight_shapes(tmp_path), file)
    write_header(family.encoder_weights("vae", tmp_path), tmp_path / "vae.safetensors")
    write_header(
        family.encoder_weights("text_encoder", tmp_path), tmp_path / "text.safetensors"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fault = fault_of(file)
    assert (
        "are not in the hub cache, and HF_HUB_OFFLINE forbids" in fault
        and "hf download Qwen/Qwen-Image-2.1" in fault
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert fault_of(file) == ""


def test_a_file_that_an_earlier_process_writes_is_no_model_yet(tmp_path: Path) -> None:
    file = tmp_path / "merged.safetensors"
    job = JobContext("job", earlier_outputs=frozenset({file}))
    (found,) = ModelConfig(name_or_path=str(file)).check(job)
    assert found.key == ("name_or_path",) and "as transformer_path" in found.message
    assert not list(
        ModelConfig(name_or_path=str(tmp_path)).check(
            JobContext("job", frozenset({tmp_path}))
        )
    )
