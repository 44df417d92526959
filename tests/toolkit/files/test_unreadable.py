"""A file that cannot be read is described as what it is, and is only downloaded again
where that helps."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from toolkit.config.sections.model_files import read_model_json
from toolkit.errors import RunError, UserError
from toolkit.files.safetensors_io import tensor_shapes
from toolkit.files.unreadable import (
    Cause,
    cause_of,
    denied,
    explained,
    stand_in,
    unread_file,
)
from toolkit.models.adapter_origin import unreadable
from toolkit.models.loading import reading
from toolkit.networks.lora_formats import read_tensors

POINTER = (
    f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 99735\n"
)
LINK = "../../blobs/0123456789abcdef"
AGAIN = "again"
STRANGER = 12345
"""A user without a name, as in a container."""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    save_file({"a.lora_A.weight": torch.ones(2, 4)}, path)
    return path


def told(path: Path) -> list[str]:
    """What each reader of weights says of a file."""
    messages = [unreadable(str(path))]
    for read in (tensor_shapes, read_tensors, read_model_json):
        with pytest.raises(UserError) as caught:
            read(path)
        messages.append(str(caught.value))
    with pytest.raises(RunError) as loaded, reading(path.parent):
        raise OSError("a library's own words")
    return [*messages, str(loaded.value)]


@pytest.mark.parametrize(
    ("contents", "words", "remedy"),
    [
        (
            POINTER,
            "it is what Git LFS has in the place of a file that was not downloaded",
            "Run 'git lfs pull' in its",
        ),
        (
            LINK,
            f"it is a link that became a text file: it holds '{LINK}'",
            "Copy the folder with the files that",
        ),
    ],
)
def test_what_stands_in_the_place_of_weights_is_named_by_every_reader(
    weights: Path, contents: str, words: str, remedy: str
) -> None:
    weights.write_text(contents)
    for message in told(weights):
        assert f"({words}). {remedy}" in message
        assert "damaged" not in message and " again" not in message


def test_damage_is_damage(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-8])
    again = [" again" in message for message in told(weights)]
    assert all(again) and len(again) == 5
    with pytest.raises(
        UserError,
        match=r"damaged weights \(it is cut off\)\. Copy or download the model again\.",
    ):
        tensor_shapes(weights)
    assert unread_file(weights.parent) == ""


def test_a_file_of_another_kind_is_replaced_and_not_downloaded_again(
    weights: Path,
) -> None:
    for contents, kind in (
        (b"GGUF" + bytes(99), "a GGUF file"),
        (b"<!DOCTYPE html>", "a web page"),
    ):
        weights.write_bytes(contents)
        with pytest.raises(
            UserError, match=rf"not readable \(it is {kind}\)\. "
        ) as caught:
            tensor_shapes(weights)
        assert " again" not in str(caught.value)


@pytest.mark.parametrize(
    ("contents", "is_one"),
    [
        (POINTER, True),
        (LINK, True),
        ("/data/models/x\n", True),
        ("", False),
        ("{}", False),
        ("a caption / with a slash", False),
        (POINTER + "x" * 1024, False),
        ("./" + "x" * 1024, False),
    ],
)
def test_only_small_files_stand_in_the_place_of_others(
    contents: str, is_one: bool
) -> None:
    assert (stand_in(contents.encode()) is not None) == is_one


def test_a_disk_that_does_not_answer_is_no_damage(tmp_path: Path) -> None:
    failed = OSError(errno.EIO, "Input/output error", "x")
    cause = cause_of(tmp_path / "x", failed)
    assert cause and cause.what == "Input/output error" and "disk" in cause.remedy
    absent = FileNotFoundError(errno.ENOENT, "No such file or directory", "x")
    assert cause_of(tmp_path / "x", absent) is None
    assert explained(tmp_path / "x", absent, "gone", AGAIN).endswith(AGAIN)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="it is not a regular file") as caught:
        tensor_shapes(tmp_path / "pipe")
    assert "Put the file itself in its place" in str(caught.value)


# ------------------------------------------------------------ permission


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder with a file that every user reaches: pytest's own is root's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "model").mkdir()
    (folder / "model" / "x.bin").write_bytes(b"0")
    yield folder
    (folder / "model").chmod(0o755)
    shutil.rmtree(folder)


def asked(file: Path) -> tuple[Cause, str]:
    """What a user is told who is not root: in a child process, which becomes a stranger
    where this is root's."""
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        with open(reader, "rb") as answer:
            found: tuple[Cause, str] = pickle.loads(answer.read())
        os.waitpid(child, 0)
        return found
    try:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(STRANGER, STRANGER, STRANGER)
            os.setresuid(STRANGER, STRANGER, STRANGER)
        answer = pickle.dumps((denied(file), unread_file(file.parent)))
        os.write(writer, answer)
    finally:
        os._exit(0)


@pytest.mark.skipif(sys.platform == "win32", reason="rights of Unix")
@pytest.mark.parametrize("closed", ["model/x.bin", "model"])
def test_who_owns_what_may_not_be_read_and_who_asks(shared: Path, closed: str) -> None:
    """The file, or the folder above it; by another name too."""
    place, file = shared / closed, shared / "model" / "x.bin"
    place.chmod(0)
    (shared / "link").symlink_to(file)
    rights = "r" if place == file else "rx"
    is_root = os.geteuid() == 0
    for path in (file, shared / "link"):
        (what, remedy), _ = asked(path)
        named = "it" if place == file else str(place)
        assert (
            what.startswith(f"Permission denied: {named} belongs to ")
            and "mode 000" in what
        )
        assert what.endswith(f", and this program runs as uid {STRANGER}") == is_root
        assert f"Run: chmod {'a' if is_root else 'u'}+{rights} {place}" in remedy
    assert asked(file)[1].startswith(
        f"{file if place == file else shared / 'model'}: not readable (Permission denied: "
    )


@pytest.mark.skipif(sys.platform == "win32", reason="rights of Unix")
def test_what_its_mode_does_not_explain_is_looked_for_elsewhere(weights: Path) -> None:
    cause = cause_of(
        weights, PermissionError(errno.EACCES, "Permission denied", str(weights))
    )
    assert cause and cause.what.startswith("Permission denied: it belongs to ")
    assert cause.remedy.startswith("Look at the rights of its mount")
