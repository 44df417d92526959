import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from tests.conftest import ROOT
from tests.diffusers_reference import MEMBERS, rewrite_json
from tests.model_folders import write_cached, write_model
from toolkit.config.reading.process import JobContext
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.model_files import model_fault
from toolkit.errors import UserError
from toolkit.models.families import (
    Download,
    UnknownFamilyError,
    arch_of,
    download_of,
    family_for,
    model_bytes,
    published_families,
    title_of,
    yet_to_come,
)
from toolkit.models.tiny import TinySpec, write_tiny_model
from toolkit.plan.outlook import ModelOutlook


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
    assert (
        family_for(model("some/finetune", "qwen_image_edit_plus")).size_multiple == 32
    )


def test_an_arch_that_the_files_contradict_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"model\.arch: 'qwen_image', but .* is 'qwen_image_edit_plus'\. Leave it out",
    ):
        family_for(
            model(folder_of(tmp_path, "QwenImageEditPlusPipeline"), "qwen_image")
        )


def test_an_arch_that_is_not_supported_is_a_mistake_with_a_hint() -> None:
    with pytest.raises(
        UserError, match=r"'qwen_imag' is not supported yet.*qwen_image"
    ):
        family_for(model("someone/model", "qwen_imag"))


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("Qwen/Qwen-Image", "qwen_image"),
        ("Qwen/Qwen-Image-2512", "qwen_image"),
        ("Qwen/Qwen-Image-Edit", "qwen_image_edit"),
        ("Qwen/Qwen-Image-Edit-2509", "qwen_image_edit_plus"),
        ("qwen/qwen-image-edit-2511", "qwen_image_edit_plus"),
        ("Qwen/Qwen-Image-2.1", "qwen_image_2"),
        ("Qwen/Qwen-Image-2.1-Turbo", "qwen_image_2"),
    ],
)
def test_a_published_id_says_its_family_and_name(name: str, arch: str) -> None:
    section = model(name)
    family = family_for(section)
    assert (
        family.arch == arch
        and title_of(section, family).lower() == name.split("/")[1].lower()
    )
    assert (
        "not for commercial use" in family.licence
        if arch == "qwen_image_2"
        else family.licence == "Apache-2.0"
    )


def test_turbo_is_told_from_its_base_by_its_id_and_by_its_files(tmp_path: Path) -> None:
    """Its noise levels are known before its folder is here, and are those of the folder
    then."""
    base, turbo = (
        family_for(model(f"Qwen/Qwen-Image-2.1{end}")) for end in ("", "-Turbo")
    )
    assert (base.sample_sigmas, base.sample_steps, base.guidance) == ((), 40, 1.0)
    assert (len(turbo.sample_sigmas), turbo.sample_steps, turbo.guidance) == (8, 8, 1.0)
    assert (
        turbo.linear_layers(Path()) == base.linear_layers(Path())
        and turbo.latent_channels == base.latent_channels
    )
    write_tiny_model(tmp_path, TinySpec(arch="qwen_image_2"))
    assert title_of(model(tmp_path), family_for(model(tmp_path))) == "Qwen-Image-2.1"
    rewrite_json(tmp_path / "model_index.json", sample_sigmas=[1.0, 0.5])
    found = family_for(model(tmp_path))
    assert (title_of(model(tmp_path), found), found.sample_sigmas) == (
        "Qwen-Image-2.1-Turbo",
        (1.0, 0.5),
    )


def table_rows() -> list[tuple[str, str]]:
    """Cells of docs/models.md: a name, and what a dry run says of it; then rarer ones
    of named.txt."""
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    table = page.partition("before anything is downloaded |\n|---|---|\n")[2].partition(
        "\n\n"
    )[0]
    lines = [
        *table.splitlines(),
        *Path(__file__).with_name("named.txt").read_text("utf-8").splitlines(),
    ]
    rows = re.findall(r"^\| (`[^|]+) \| (.+) \|$", "\n".join(lines), re.MULTILINE)
    assert len(rows) == len(lines) > 40
    return rows


@pytest.fixture(scope="session")
def tiny_members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each member, by its title. Read only."""
    others = {
        "Qwen-Image-2.1": "qwen_image_2",
        "Qwen-Image-Layered": "qwen_image_layered",
    }
    specs = MEMBERS | {title: TinySpec(arch=arch) for title, arch in others.items()}
    folders = {title: tmp_path_factory.mktemp("member") for title in specs}
    for title, spec in specs.items():
        write_tiny_model(folders[title], spec)
    return folders


def make_folder(
    folder: Path, title: str, change: str, members: dict[str, Path]
) -> None:
    """A model folder with the change that a cell of the table names."""
    shutil.copytree(members[title], folder)
    part, *other = re.findall(r"`([^`]+)`|of (\S+)$", change) or [("", "")]
    if change.startswith("without") or " of " in change:
        shutil.rmtree(folder / part[0])
    if " of " in change:
        shutil.copytree(members[other[0][1]] / part[0], folder / part[0])
    elif other:
        rewrite_json(folder / part[0], **json.loads(other[0][0]))


@pytest.mark.parametrize(("cell", "words"), table_rows())
def test_a_dry_run_says_of_an_id_or_a_folder_what_the_table_says(
    cell: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_members: dict[str, Path],
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    name, title, change = re.fullmatch(
        r"`([^`]+)`(?: of ([^ ,]+))?(?:, (.+))?", cell
    ).groups(default="")
    arch = re.findall("`arch: (.+)`", change)
    if title or "my_mod" in name:
        make_folder(
            Path("my_model"),
            title or "Qwen-Image-2.1",
            "" if arch else change,
            tiny_members,
        )
    section = ModelConfig(name_or_path=name, **({"arch": arch[0]} if arch else {}))
    try:
        fault = section.file_fault or model_fault(section.name_or_path, None)
        said = fault or next(ModelOutlook.of(section, JobContext("job")).lines())
    except UserError as error:
        said = str(error)
    said = said.replace(str(tmp_path), "...")
    said = re.sub(r", [\d.]+ MB$", "", said)
    assert said == words if words.startswith("model: ") else words in said


def test_what_nothing_says_is_not_taken_for_some_family() -> None:
    with pytest.raises(
        UnknownFamilyError,
        match=r"someone/model is not on this disk, so its family is not known. Give",
    ):
        family_for(model("someone/model"))
    with pytest.raises(
        UnknownFamilyError,
        match=r"not known. Did you mean 'Qwen/Qwen-Image-2.1'\? Give",
    ):
        family_for(model("Qwen/QwenImage-2.1"))


def test_files_of_another_family_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"model\.name_or_path: .* is another model: .* says 'FluxPipeline'",
    ):
        family_for(model(folder_of(tmp_path, "FluxPipeline")))


def test_the_hub_cache_decides_as_a_folder_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    write_cached(tmp_path, "someone/flux", "FluxPipeline")
    write_cached(tmp_path, "someone/edit")
    with pytest.raises(UserError, match="'someone/flux' is another model"):
        family_for(model("someone/flux"))
    assert arch_of(model("someone/edit")) == "qwen_image_edit_plus"
    assert arch_of(model("someone/else")) is None


def test_a_folder_without_an_index_says_nothing(tmp_path: Path) -> None:
    assert arch_of(model(tmp_path)) is None


def test_the_plan_says_what_a_dry_run_cannot_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    write_cached(tmp_path, "someone/whole")
    write_cached(tmp_path, "someone/part", without="vae")
    write_model(tmp_path / "mine/local")
    said = {
        name: list(
            yet_to_come(
                model(name), JobContext("job", frozenset({tmp_path / "later/one"}))
            )
        )
        for name in (
            "someone/absent",
            "someone/part",
            "someone/whole",
            "mine/local",
            "./none",
            "later/one",
        )
    }
    absent = "is not in the hub cache: the run downloads it once its model_index.json says that it can be trained"
    assert said == {
        "someone/absent": [f"someone/absent {absent}"],
        "someone/part": [
            "someone/part is not complete in the hub cache: the run downloads the rest"
        ],
        **{name: [] for name in ("someone/whole", "mine/local", "./none", "later/one")},
    }


def test_a_download_has_its_size_where_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the published model by its shapes, 28.8 billion weights; of a broken-off one
    by the hub's list, less what is here; of another one the hub alone knows."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    write_cached(tmp_path, "someone/whole")
    repository = write_cached(tmp_path, "someone/part", listed=True).parents[1]
    total = sum(
        path.stat().st_size
        for path in repository.rglob("*")
        if path.is_file() and "snapshots" in path.parts
    )
    (repository / "snapshots" / ("a" * 40) / "vae" / "model.safetensors").unlink()
    (repository / "blobs").mkdir()
    (repository / "blobs" / "b.incomplete").write_bytes(b"12345")
    found = {
        name: download_of(ModelConfig(name_or_path=name), JobContext("job"))
        for name in (
            "someone/absent",
            "someone/part",
            "someone/whole",
            "Qwen/Qwen-Image-Edit-2509",
            "./none",
        )
    }
    sizes = {name: download.bytes for name, download in found.items() if download}
    assert sizes.pop("Qwen/Qwen-Image-Edit-2509") == pytest.approx(57.7e9, rel=0.001)
    assert sizes == {"someone/absent": None, "someone/part": total - 5}
    absent = found["someone/absent"]
    assert (
        absent
        and absent.folder == tmp_path / "hub"
        and absent.free > 0
        and absent.why_no_room("x") == ""
    )


def test_a_download_that_does_not_fit_is_told(tmp_path: Path) -> None:
    assert Download(100, tmp_path, 102).why_no_room("some/model") == ""
    message = Download(100 * 10**9, tmp_path, 101 * 10**9).why_no_room("some/model")
    assert (
        message.startswith("model.name_or_path: some/model needs 100.0 GB")
        and "101.0 GB free" in message
    )


def test_the_size_of_a_model_is_that_of_its_files_where_they_are_here(
    tmp_path: Path,
) -> None:
    folder = write_model(tmp_path / "mine")
    for part, size in {
        "transformer": 3_000_000_000,
        "vae": 1000,
        "tokenizer": 9,
    }.items():
        with (folder / part / "model.safetensors").open("wb") as file:
            file.truncate(size)  # takes no space on the disk
    text = (folder / "text_encoder" / "model.safetensors").stat().st_size
    assert model_bytes(ModelConfig(name_or_path=str(folder))) == 3_000_001_000 + text


def test_a_family_without_written_sizes_disturbs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "__init__": "from toolkit.extension import Extension\n"
        "class Small(Extension):\n    uid, family = 'small', '.family:FAMILY'\n"
        "AI_TOOLKIT_EXTENSIONS = [Small]\n",
        "family": "from tests.small_parts import SmallFamily\n"
        "class Small(SmallFamily):\n    published = {'a/small': 'Small'}\n"
        "FAMILY = Small()\n",
    }
    usual = published_families()
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("EXTENSIONS_PATH", str(tmp_path))
    assert family_for(ModelConfig(name_or_path="a/small")).size_fault()
    assert published_families() == usual
