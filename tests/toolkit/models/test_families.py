import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from toolkit.contracts import ModelAdapter
from toolkit.errors import UserError
from toolkit.models.families import (
    ADAPTERS,
    BLOCK_COUNT,
    EVERY_LINEAR_LAYER,
    FAMILIES,
    FOOTPRINTS,
    LINEAR_LAYERS,
    MODULES,
    arch_of_folder,
    family_for,
)


def model(name_or_path: Path | str, arch: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(name_or_path=str(name_or_path), arch=arch)


def folder_of(tmp_path: Path, class_name: str) -> Path:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
    return tmp_path


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.arch)
def test_every_entry_of_a_family_loads(family, tmp_path: Path) -> None:
    assert issubclass(ADAPTERS.load(family.adapter), ModelAdapter)
    assert LINEAR_LAYERS.load(family.adapter)(tmp_path) == family.linear_layers(tmp_path)
    assert BLOCK_COUNT.load(family.adapter)(tmp_path) == family.block_count(tmp_path)
    assert EVERY_LINEAR_LAYER.load(family.adapter)(tmp_path) == family.every_linear_layer(tmp_path)
    assert MODULES.load(family.adapter)(tmp_path) == family.modules(tmp_path)
    assert FOOTPRINTS.load(family.adapter)(tmp_path) == family.footprint(tmp_path)


@pytest.mark.parametrize("arch", [None, "qwen_image_edit_plus"])
def test_a_folder_says_its_family(tiny_model: Path, arch: str | None) -> None:
    assert family_for(model(tiny_model, arch)).arch == "qwen_image_edit_plus"


def test_without_a_folder_arch_decides() -> None:
    assert family_for(model("Qwen/Qwen-Image-Edit-2509")).arch == "qwen_image_edit_plus"
    assert family_for(model("some/finetune", "qwen_image_edit_plus")).size_multiple == 32


def test_a_folder_that_contradicts_arch_is_a_mistake(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "QwenImagePipeline")
    with pytest.raises(UserError, match=r"model\.arch: 'qwen_image_edit_plus', but the files .* 'qwen_image'"):
        family_for(model(folder, "qwen_image_edit_plus"))


def test_a_family_that_is_not_supported_is_a_mistake_with_a_hint(tmp_path: Path) -> None:
    for section in (model(folder_of(tmp_path, "QwenImagePipeline")), model("Qwen/Qwen-Image", "qwen_image")):
        with pytest.raises(UserError, match=r"'qwen_image' is not supported yet.*qwen_image_edit_plus"):
            family_for(section)


def test_another_kind_of_pipeline_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model_index\.json: pipeline 'FluxPipeline' is not a model family"):
        arch_of_folder(folder_of(tmp_path, "FluxPipeline"))


def test_a_damaged_index_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": ')
    with pytest.raises(UserError, match=r"model_index\.json: not readable"):
        arch_of_folder(tmp_path)


def test_a_folder_without_an_index_says_nothing(tmp_path: Path) -> None:
    assert arch_of_folder(tmp_path) is None
