import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from tests.model_folders import write_cached, write_model
from toolkit.config.process import JobContext
from toolkit.errors import UserError
from toolkit.models.families import arch_of, family_for, yet_to_come


def model(name_or_path: Path | str, arch: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(name_or_path=str(name_or_path), revision=None, arch=arch)


def folder_of(tmp_path: Path, class_name: str) -> Path:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
    return tmp_path


@pytest.mark.parametrize("arch", [None, "qwen_image_edit_plus"])
def test_a_folder_says_its_family(tiny_model: Path, arch: str | None) -> None:
    assert family_for(model(tiny_model, arch)).arch == "qwen_image_edit_plus"


def test_without_a_folder_arch_decides() -> None:
    assert family_for(model("Qwen/Qwen-Image-Edit-2509")).arch == "qwen_image_edit_plus"
    assert family_for(model("some/finetune", "qwen_image_edit_plus")).size_multiple == 32


def test_an_arch_that_the_files_contradict_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.arch: 'qwen_image', but the files .* 'qwen_image_edit_plus'"):
        family_for(model(folder_of(tmp_path, "QwenImageEditPlusPipeline"), "qwen_image"))


def test_an_arch_that_is_not_supported_is_a_mistake_with_a_hint() -> None:
    with pytest.raises(UserError, match=r"'qwen_image' is not supported yet.*qwen_image_edit_plus"):
        family_for(model("someone/model", "qwen_image"))


@pytest.mark.parametrize("pipeline", ["FluxPipeline", "QwenImagePipeline", "QwenImageEditPipeline"])
def test_files_of_another_family_are_a_mistake(tmp_path: Path, pipeline: str) -> None:
    with pytest.raises(UserError, match=rf"model\.name_or_path: .* is another model: .* says '{pipeline}'"):
        family_for(model(folder_of(tmp_path, pipeline)))


def test_the_hub_cache_decides_as_a_folder_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    write_cached(tmp_path, "someone/flux", "FluxPipeline")
    write_cached(tmp_path, "someone/edit")
    with pytest.raises(UserError, match="'someone/flux' is another model"):
        family_for(model("someone/flux"))
    assert arch_of(model("someone/edit")) == "qwen_image_edit_plus"
    assert arch_of(model("someone/else")) is None


def test_a_folder_without_an_index_says_nothing(tmp_path: Path) -> None:
    assert arch_of(model(tmp_path)) is None


def test_the_plan_says_what_a_dry_run_cannot_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    write_cached(tmp_path, "someone/whole")
    write_cached(tmp_path, "someone/part", without="vae")
    write_model(tmp_path / "mine/local")
    said = {
        name: list(yet_to_come(model(name), JobContext("job", frozenset({tmp_path / "later/one"}))))
        for name in ("someone/absent", "someone/part", "someone/whole", "mine/local", "./none", "later/one")
    }
    absent = "is not in the hub cache: the run downloads it once its model_index.json says that it can be trained"
    assert said == {
        "someone/absent": [f"someone/absent {absent}"],
        "someone/part": ["someone/part is not complete in the hub cache: the run downloads the rest"],
        **{name: [] for name in ("someone/whole", "mine/local", "./none", "later/one")},
    }
