"""What is mapped from a file is no memory of this process but while it is read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from toolkit.errors import RunError
from toolkit.files import mapped
from toolkit.files.mapped import (
    is_mapped,
    mapped_bytes,
    read_in,
    unsure_disk,
    was_read,
    will_be_at,
    will_read,
)
from toolkit.files.writing import python_path

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


def replaced_by_nan(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize(
    "harm", [lambda path: os.truncate(path, 5000), replaced_by_nan], ids=["cut", "nan"]
)
def test_bytes_that_are_no_longer_those_that_were_mapped_name_their_file(
    tmp_path: Path, harm
) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(bytes(8192) + b"x" * 8192)
    os.utime(path, (1, 1))
    tensor = mapped_bytes(path)
    will_be_at(tensor, tmp_path / "entry" / "later")
    read_in(tensor)
    assert int(tensor[-1]) == ord("x")
    was_read(tensor)
    harm(path)
    for part in (tensor, tensor[:10], tensor[8192:], tensor[-1:].view(torch.int8)):
        with pytest.raises(RunError, match=r"keep_quantized: false") as caught:
            read_in(torch.zeros(3), part)
        assert str(caught.value).startswith(f"{tmp_path / 'entry' / 'later'}: ")
    read_in(torch.zeros(3))  # in no file


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reads a map so")
def test_bytes_that_the_disk_does_not_give_are_such_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file looks as it was, as where a disk fails."""
    path = tmp_path / "bytes"
    path.write_bytes(b"x" * 16384)
    tensor = mapped_bytes(path)
    before = mapped._maps[tensor.data_ptr()].version
    monkeypatch.setattr(mapped, "_version", lambda file: before)
    os.truncate(path, 5000)
    read_in(tensor[:8000])  # the rest of its last page is zeros
    with pytest.raises(RunError, match=r"no longer gives its bytes"):
        read_in(tensor)


CUT = """
import os, sys
from pathlib import Path
import run
from toolkit.files.mapped import mapped_bytes
run.prepare_streams()
tensor = mapped_bytes(Path(sys.argv[1]))
os.truncate(sys.argv[1], 10)
print(int(tensor.sum()))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGBUS")
def test_a_page_that_is_read_without_care_ends_a_program_with_a_word(
    tmp_path: Path,
) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"x" * 2**20)
    ended = subprocess.run(
        [sys.executable, "-c", CUT, str(path)],
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == -signal.SIGBUS
    assert ended.stderr.startswith("Fatal Python error: Bus error")
    assert "line 9 in <module>" in ended.stderr


TABLE = r"""
sysfs /sys sysfs rw 0 0
/dev/sda1 / ext4 rw 0 0
server:/runs /runs nfs4 rw,vers=4.2 0 0
//server/share /mnt/my\040share cifs rw 0 0
mfs#volume:9421 /workspace fuse rw 0 0
overlay /workspace/local ext4 rw 0 0
systemd-1 /auto autofs rw 0 0
server:/auto /auto nfs rw 0 0
/dev/sdb1 /runs/nvme xfs rw 0 0
tools /home fuse.sshfs rw 0 0
/dev/sdc1 /home ext4 rw 0 0
""".lstrip()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", ""),
        ("/output", ""),
        ("/runs", "nfs4"),
        ("/runs/a/_cache/models", "nfs4"),
        ("/runs2", ""),
        ("/runs/nvme/output", ""),
        ("/mnt/my share/output", "cifs"),
        ("/workspace/output", "fuse"),
        ("/workspace/local/output", ""),
        ("/auto/output", "nfs"),
        ("/home/me", ""),  # the last one hides those before it
    ],
)
def test_the_table_of_mounts_tells_disks_that_may_go(
    tmp_path: Path, path: str, kind: str
) -> None:
    (tmp_path / "mounts").write_text(TABLE)
    assert unsure_disk(Path(path), tmp_path / "mounts") == kind


def test_a_link_is_on_the_disk_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text(f"server:/ {tmp_path}/far nfs rw 0 0\n")
    (tmp_path / "far").mkdir()
    (tmp_path / "output").symlink_to(tmp_path / "far")
    assert unsure_disk(tmp_path / "output" / "new", tmp_path / "mounts") == "nfs"
    assert unsure_disk(tmp_path, tmp_path / "mounts") == ""
