"""A LoRA file named as on the hub: what its check says, from the hub cache alone. The
settings of images beside one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.model_folders import COMMIT, NO_WEIGHTS
from toolkit.config.reading.process import JobContext
from toolkit.config.sections.lora_beside import LoraBeside
from toolkit.config.sections.trainer import DiffusionSection

REPO = "someone/adapter"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot folder of REPO in an empty hub cache, which is not there yet; the
    working directory is empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return (
        tmp_path / "hub" / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT
    )


def put(cache: Path, *files: str, listed: tuple[str, ...] = ()) -> None:
    """Files of the repository in the cache; listed: all that it has, as the client
    library keeps it."""
    for file in files:
        (cache / file).parent.mkdir(parents=True, exist_ok=True)
        (cache / file).write_bytes(NO_WEIGHTS)
    (cache.parents[1] / "refs").mkdir(exist_ok=True)
    (cache.parents[1] / "refs" / "main").write_text(COMMIT)
    if listed:
        from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache

        entry = TreeCacheEntry(
            size=1, blob_id="0" * 40, lfs_sha256=None, lfs_size=None, xet_hash=None
        )
        write_tree_cache(str(cache.parents[1]), COMMIT, dict.fromkeys(listed, entry))


def said(path: str) -> list[str]:
    return [
        finding.message for finding in LoraBeside(path=path).check(JobContext("job"))
    ]


@pytest.mark.parametrize(
    "files",
    [("a.safetensors",), ("pytorch_lora_weights.safetensors", "other.safetensors")],
)
def test_the_lora_of_a_repository_is_found_in_the_cache(
    cache: Path, files: tuple[str, ...]
) -> None:
    put(cache, *files, "checkpoint-10/pytorch_lora_weights.safetensors", "README.md")
    for name in (REPO, f"{REPO}/{files[0]}"):
        config = LoraBeside(path=name)
        assert (config.file(), config.to_download(), said(name)) == (
            str(cache / files[0]),
            "",
            [],
        )
    config = LoraBeside(path=f"{REPO}/checkpoint-10/pytorch_lora_weights.safetensors")
    assert config.file() == str(
        cache / "checkpoint-10" / "pytorch_lora_weights.safetensors"
    )


def test_several_loras_are_listed(cache: Path) -> None:
    put(cache, "b.safetensors", "a.safetensors")
    expected = f"'{REPO}', of the hub, has a.safetensors, b.safetensors. Give one of them, as '{REPO}/a.safetensors'."
    assert said(REPO) == [expected]


def test_a_file_that_alone_is_here_is_not_taken_for_the_only_one(cache: Path) -> None:
    put(cache, "b.safetensors", listed=("a.safetensors", "b.safetensors"))
    assert said(REPO)[0].startswith(
        f"'{REPO}', of the hub, has a.safetensors, b.safetensors."
    )
    assert said(f"{REPO}/b.safetensors") == []


def test_a_repository_without_a_lora_is_named(cache: Path) -> None:
    put(cache, "weights.bin", listed=("weights.bin",))
    assert said(REPO) == [
        f"'{REPO}', of the hub, has no safetensors file. Give a repository with a LoRA."
    ]


def test_what_is_not_here_is_downloaded_or_refused_where_the_hub_may_not_be_asked(
    cache: Path, monkeypatch
) -> None:
    for name in (REPO, f"{REPO}/a.safetensors"):
        config = LoraBeside(path=name)
        assert (config.file(), config.to_download(), said(name)) == (name, name, [])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    start = "is not in the hub cache, and HF_HUB_OFFLINE forbids to ask the hub. Unset it, or run 'hf download"
    assert said(REPO) == [f"'{REPO}' {start} {REPO}' where there is a connection."]
    assert said(f"{REPO}/a.safetensors") == [
        f"'{REPO}/a.safetensors' {start} {REPO} a.safetensors' where there is a connection."
    ]


def test_a_path_stays_a_path(cache: Path) -> None:
    """That of a file or folder that is here, and what looks like one."""
    Path("someone").mkdir()
    for name in (
        "none.safetensors",
        "./a/b",
        "output/run/run.safetensors",
        "someone/adapter",
        "someone/a/b.safetensors",
    ):
        assert LoraBeside(path=name).to_download() == ""
        assert said(name)[0].startswith(
            f"{name!r} does not exist (working directory: {Path.cwd()})."
        )
    file = Path("someone/a/b.safetensors")
    file.parent.mkdir()
    file.write_bytes(json.dumps({}).encode())
    assert said(str(file)) == [] and LoraBeside(path=str(file)).file() == str(file)


@pytest.mark.parametrize("lora", [{}, {"lora": "lightning.safetensors"}])
def test_images_beside_a_lora_have_its_levels_and_without_it_those_of_the_model(
    lora: dict[str, str],
) -> None:
    fast = {"sample_steps": 4, "guidance_scale": 1.0, "flow_shift": 3.0}
    section = DiffusionSection.model_validate({
        "type": "sd_trainer",
        "model": {"name_or_path": "m"},
        "datasets": [{"folder_path": "d"}],
        "sample": {**lora, **fast, "samples": [{"prompt": "a"}]},
    })  # fmt: skip
    (picture,) = section.sample_pictures()
    assert picture.stretched == (not lora)
    alone = section.pictures_alone()[0]
    given = {key: getattr(alone, key) for key in fast}
    assert given == (dict.fromkeys(fast) if lora else fast)
