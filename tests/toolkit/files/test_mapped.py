"""What is mapped from a file is no memory of this process but while it is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from toolkit.files.mapped import is_mapped, mapped_bytes, was_read, will_read

SMAPS = Path("/proc/self/smaps")


@pytest.mark.slow
@pytest.mark.skipif(
    not SMAPS.exists(), reason="only Linux says what is resident of a map"
)
def test_what_was_read_of_the_file_is_no_memory_of_the_process(tmp_path: Path) -> None:
    path, size = tmp_path / "bytes", 2**24
    path.write_bytes(bytes(range(256)) * (size // 256))
    tensor = mapped_bytes(path)
    assert resident_file_bytes(tensor) == 0
    will_read(tensor[4096:])
    assert int(tensor.sum()) == 255 * size // 2
    assert resident_file_bytes(tensor) == size
    was_read(tensor)
    assert resident_file_bytes(tensor) == 0
    assert int(tensor[-1]) == 255
    assert is_mapped(tensor[5:9]) and not is_mapped(tensor.clone())


def resident_file_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a map that count as memory of this process."""
    begin = f"{tensor.data_ptr():x}-"
    lines = iter(SMAPS.read_text().splitlines())
    next(line for line in lines if line.startswith(begin))
    return next(
        1024 * int(line.split()[1]) for line in lines if line.startswith("Rss:")
    )


def test_a_file_may_go_while_it_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(200)))
    tensor = mapped_bytes(path)
    path.unlink()
    assert tensor.tolist() == list(range(200))
