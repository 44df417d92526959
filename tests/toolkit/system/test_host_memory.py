import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.system import host_memory

ROOT = Path(__file__).parents[3]

IN_A_FRESH_PROCESS = """
from pathlib import Path

import torch

from toolkit.system.host_memory import malloc_trim


def anonymous_mib():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) // 1024


def filled(mib):
    return torch.empty(mib * 2**20, dtype=torch.uint8).fill_(1)


filled(30)  # freeing it raises what glibc keeps
before = anonymous_mib()
blocks, kept = [], []
for _ in range(20):
    blocks.append(filled(4))
    kept.append(torch.empty(2**12, dtype=torch.uint8).fill_(1))  # so that the heap cannot simply shrink
full = anonymous_mib()
del blocks
malloc_trim()
print(full - before, anonymous_mib() - before)
"""
"""A heap that other tests have used may hold the blocks without growing."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux")
def test_freed_tensors_are_given_back() -> None:
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    grown, left = map(int, result.stdout.split())
    assert grown > 70
    assert left < 20


def test_a_system_without_the_call_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "_c_library", lambda: None)
    host_memory.malloc_trim()


def test_free_memory_is_what_the_system_has_or_a_containers_limit(
    tmp_path: Path, monkeypatch
) -> None:
    meminfo, limit, used = (tmp_path / name for name in ("meminfo", "max", "current"))
    meminfo.write_text("MemTotal:       2000 kB\nMemAvailable:   1000 kB\n")
    assert host_memory._available(meminfo) == 1000 * 1024
    assert host_memory._left_in((limit, used)) is None  # no container
    for text, left in (("max\n", None), ("5000\n", 2000), ("100\n", 0)):
        limit.write_text(text)
        used.write_text("3000\n")
        assert host_memory._left_in((limit, used)) == left
    limit.write_text("5000")
    monkeypatch.setattr(host_memory, "CGROUPS", ((limit, used),))
    assert host_memory.free_host_memory() == 2000
    monkeypatch.setattr(host_memory, "CGROUPS", ())
    assert host_memory.free_host_memory() > 2000 or sys.platform != "linux"


@pytest.mark.parametrize(
    ("size", "pinned"),
    [
        (0, 0),
        (1, 1),
        (2**20 + 1, 2**21),
        (216 * 2**20, 256 * 2**20),
        (256 * 2**20, 256 * 2**20),
        (256 * 2**20 + 1, 256 * 2**20 + 1),
        (340_000_000, 340_000_000),
    ],
)
def test_pinned_memory_is_rounded_up_to_the_limit_and_exact_above(
    size: int, pinned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as with PyTorch 2.13
    monkeypatch.setattr(host_memory, "pins_exactly", lambda: True)
    assert host_memory.pinned_bytes(size) == pinned
