import sys
from pathlib import Path

import pytest
import torch

from toolkit import host_memory


def anonymous_bytes() -> int:
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux")
def test_freed_tensors_are_given_back() -> None:
    kept = []
    torch.empty(30 * 2**20, dtype=torch.uint8).fill_(1)  # freeing it raises what glibc keeps
    before = anonymous_bytes()
    for _ in range(40):
        freed = torch.empty(4 * 2**20, dtype=torch.uint8).fill_(1)
        kept.append(torch.empty(2**12, dtype=torch.uint8).fill_(1))  # so that the heap cannot simply shrink
        del freed
    blocks = [torch.empty(4 * 2**20, dtype=torch.uint8).fill_(1) for _ in range(20)]
    kept.append(torch.empty(2**12, dtype=torch.uint8).fill_(1))
    assert anonymous_bytes() - before > 70 * 2**20
    del blocks
    host_memory.return_freed_memory()
    assert anonymous_bytes() - before < 20 * 2**20


def test_a_system_without_the_call_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "_c_library", lambda: None)
    host_memory.return_freed_memory()
