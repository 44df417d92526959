import os
import re
import signal
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.distributed.run
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

from toolkit.system import host_memory, torch_compat, torch_version

ROOT = Path(__file__).parents[3]

COMMON = {
    "backend", "expandable_segments", "garbage_collection_threshold", "graph_capture_record_stream_reuse",
    "max_non_split_rounding_mb", "max_split_size_mb", "per_process_memory_fraction", "pinned_num_register_threads",
    "pinned_reserve_segment_size_mb", "pinned_use_background_threads", "pinned_use_cuda_host_register",
    "release_lock_on_cudamalloc", "roundup_power2_divisions",
}  # fmt: skip
PINNED = {
    "pinned_free_catch_all",
    "pinned_max_round_threshold_mb",
    "pinned_max_cached_size_mb",
}
KNOWN = {
    "2.11.0": COMMON,
    "2.12.0": COMMON | {"pinned_free_catch_all"},
    "2.13.0": COMMON | PINNED,
    "2.14.1": COMMON | PINNED,
    "2.15.0": COMMON
    | PINNED
    | {"expandable_segments_reserve", "large_segment_size_mb"},
}
"""Settings that the allocator of each supported version knows: strings of libc10.so and
libc10_cuda.so in its wheel for Linux with CUDA. Another one is "Unrecognized key" at
the first allocation."""

BOTH_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """Sets the version that is found installed, and an environment without settings of
    an allocator."""
    for name in BOTH_NAMES:
        monkeypatch.delenv(name, raising=False)
    return lambda version: monkeypatch.setattr(
        torch_version, "version", lambda package: version
    )


@pytest.mark.parametrize("version", [*KNOWN, "2.11.0a0+5228986c39.nv26.01"])
def test_a_supported_version_is_not_mentioned(installed, version: str) -> None:
    installed(version)
    assert torch_version.check_torch_version() is None


def test_every_supported_version_is_listed_here() -> None:
    (oldest, newest), listed = (
        (torch_version.OLDEST, torch_version.NEWEST),
        [torch_version.minor(one) for one in KNOWN],
    )
    assert listed == [(2, number) for number in range(oldest[1], newest[1] + 1)]


@pytest.mark.skipif(
    sys.platform != "linux", reason="expandable segments are of Linux alone"
)
@pytest.mark.parametrize("version", KNOWN)
def test_the_allocator_is_told_only_what_the_installed_version_knows(
    installed, version: str
) -> None:
    installed(f"{version}+cu130")
    torch_version.prepare_allocator()
    settings = dict(
        setting.split(":") for setting in os.environ["PYTORCH_ALLOC_CONF"].split(",")
    )
    assert settings.keys() <= KNOWN[version]
    assert settings["expandable_segments"] == "True"
    # equal, or memory is overwritten
    limits = {settings[name] for name in settings if name.startswith("pinned_max")}
    assert limits == ({"256"} if KNOWN[version] >= PINNED else set())
    pinned = 340_000_000 if limits else 2**29
    assert host_memory.pinned_bytes(340_000_000) == pinned


@pytest.mark.skipif(
    sys.platform != "linux", reason="expandable segments are of Linux alone"
)
@pytest.mark.parametrize(
    "version", ["2.13.0a0+5228986c39.nv26.04", "2.13.0.dev20260301+cu130", "2.13.0rc1"]
)
def test_a_build_under_development_is_told_what_the_version_before_it_knows(
    installed, version: str
) -> None:
    installed(version)
    torch_version.prepare_allocator()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert host_memory.pinned_bytes(340_000_000) == 2**29
    assert torch_version.check_torch_version() is None


@pytest.mark.parametrize("name", BOTH_NAMES)
def test_what_the_user_has_set_stays(
    installed, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    installed("2.13.0")
    monkeypatch.setenv(name, "max_split_size_mb:64")
    torch_version.prepare_allocator()
    assert [os.environ.get(one) for one in BOTH_NAMES] == [
        "max_split_size_mb:64" if one == name else None for one in BOTH_NAMES
    ]


def test_the_installed_pytorch_knows_its_list() -> None:
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    if not library.is_file():
        pytest.skip("another name of the library here")
    known, here = library.read_bytes(), torch_version.minor(torch.__version__)
    told = {
        name: since <= here
        for name, (_, since) in torch_version.ALLOCATOR_SETTINGS.items()
    }
    assert {name: name.encode() in known for name in told} == told


def pretend(version: str, folder: Path) -> None:
    """Makes this version the one that is found first, where the folder is on the
    path."""
    metadata = folder / f"torch-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("version", "code", "words"),
    [
        (
            "2.10.1+cu128",
            2,
            "PyTorch 2.10.1+cu128 is too old, this program runs on 2.11 to 2.15",
        ),
        ("2.16.0.dev1", 0, "warning: PyTorch 2.16.0.dev1 is newer than"),
    ],
)
def test_an_older_pytorch_is_refused_and_a_newer_one_is_mentioned(
    run_py, tmp_path: Path, version: str, code: int, words: str
) -> None:
    pretend(version, tmp_path)
    path = ROOT / "config/examples/quickstart.yaml"
    result = run_py(path, "--dry-run", cwd=ROOT, env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == code, result.stderr
    assert words in result.stderr


def test_the_launcher_refuses_it_before_torch_is_imported(tmp_path: Path) -> None:
    pretend("2.10.1", tmp_path)
    (tmp_path / "torch.py").write_text("raise SystemExit('imported')")
    command = [
        sys.executable,
        str(ROOT / "launch.py"),
        "--standalone",
        "run.py",
        "job.yaml",
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert result.stderr.startswith(
        "launch.py: PyTorch 2.10.1 is too old, this program runs on 2.11 to 2.15"
    )


def test_the_range_is_one_everywhere() -> None:
    oldest, newest = (
        ".".join(map(str, version))
        for version in (torch_version.OLDEST, torch_version.NEWEST)
    )
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    pinned = torch_version.minor(pins.partition("\ntorch==")[2])
    assert torch_version.OLDEST <= pinned <= torch_version.NEWEST
    for page in (
        "README.md",
        "docs/troubleshooting.md",
        "docs/memory.md",
        "docs/runpod.md",
        "docker/Dockerfile",
    ):
        said = re.findall(
            r"PyTorch (\d\.\d+) to (\d\.\d+)", (ROOT / page).read_text(encoding="utf-8")
        )
        assert said == [(oldest, newest)], page


@pytest.mark.parametrize(("name", "former"), torch_compat.FORMER_NAMES.items())
def test_a_collective_is_found_by_either_name(
    monkeypatch: pytest.MonkeyPatch, name: str, former: str
) -> None:
    for each in (name, former):
        monkeypatch.setattr(dist, each, each, raising=False)
    assert torch_compat.collective(name) == name
    monkeypatch.delattr(dist, name)
    assert torch_compat.collective(name) == former


@pytest.fixture
def without_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun of 2.11: it knows no --shutdown-timeout, and its agents wait 30
    seconds."""

    def parser() -> ArgumentParser:
        made = ArgumentParser()
        made.add_argument("--nnodes")
        made.add_argument("script")
        made.add_argument("arguments", nargs="...")
        return made

    def shutdown(
        agent: SimpleNamespace, death_sig: signal.Signals = signal.SIGTERM
    ) -> None:
        agent._pcontext.close(death_sig)

    monkeypatch.setattr(torch.distributed.run, "get_args_parser", parser)
    monkeypatch.setattr(LocalElasticAgent, "_shutdown", shutdown)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [([], 300), (["--shutdown-timeout", "7"], 7), (["--shutdown-timeout=7"], 7)],
)
def test_torchrun_without_the_flag_waits_as_long(
    without_flag, monkeypatch: pytest.MonkeyPatch, given: list[str], seconds: int
) -> None:
    monkeypatch.setenv("PET_SHUTDOWN_TIMEOUT", "300")
    options = torch_compat.parse_torchrun(
        [*given, "--nnodes=2", "run.py", "job.yaml", "--shutdown-timeout=9"]
    )
    assert (options.nnodes, options.script) == ("2", "run.py")
    assert options.arguments == ["job.yaml", "--shutdown-timeout=9"]
    closed = []

    def close(death_sig: signal.Signals, timeout: int = 30) -> None:
        closed.append((death_sig, timeout))

    LocalElasticAgent._shutdown(
        SimpleNamespace(_pcontext=SimpleNamespace(close=close)), signal.SIGINT
    )
    assert closed == [(signal.SIGINT, seconds)]
    LocalElasticAgent._shutdown(SimpleNamespace(_pcontext=SimpleNamespace(close=close)))
    assert closed[1] == (signal.SIGTERM, seconds)
