"""`run.py download` against a hub on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from extensions.tools.download.config import DownloadConfig
from tests.running import run_tool
from tests.small_hub import small_hub
from toolkit.errors import UserError
from toolkit.models import hub

NAME = "someone/encoder"
FILES = {"config.json": b"{}", "model.safetensors": b"x" * 100_000}


def test_it_prints_size_progress_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "LOOK_EVERY_S", 0.01)
    with small_hub(FILES, NAME) as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        close_session()
        run_tool("download", [NAME])
    said = capsys.readouterr().out.splitlines()
    begun, *_, last = (line for line in said if "kB" in line)
    assert begun.startswith("downloading ") and " of 100 kB" in begun
    assert last.startswith(f"{NAME}: 100 kB in {tmp_path}")
    snapshot = Path(last.partition(" in ")[2])
    assert (snapshot / "model.safetensors").read_bytes() == FILES["model.safetensors"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Qwen-Image-2512", "Did you mean 'Qwen/Qwen-Image-2512'?"),
        ("job.yaml", "neither a folder nor a hub id"),
    ],
)
def test_what_is_no_name_of_the_hub_is_refused(name: str, said: str) -> None:
    with pytest.raises(UserError, match="model: ") as refused:
        run_tool("download", [name])
    assert said in str(refused.value)
    assert DownloadConfig.positional == ("model",)


def test_of_a_path_on_this_disk_nothing_is_downloaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_tool("download", [tmp_path])
    assert "is on this disk: nothing has to be downloaded" in capsys.readouterr().out
