import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.processes import killed
from toolkit.errors import RunError
from toolkit.files.tensor_cache import TensorCache, _hashed, key_of

KEY = key_of(name="entry")
TENSORS = {
    "a": torch.arange(300.0).reshape(3, 100),
    "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
}


def make_cache(folder: Path) -> tuple[TensorCache, Path]:
    cache = TensorCache(folder)
    cache.put(KEY, TENSORS)
    return cache, folder / KEY[:2] / f"{KEY}.safetensors"


def assert_same(read: dict[str, torch.Tensor] | None) -> None:
    assert read is not None and read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(read[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_is_put_is_got_back(tmp_path: Path, in_memory: bool) -> None:
    cache = TensorCache(None if in_memory else tmp_path / "not" / "yet")
    assert cache.get(KEY) is None
    cache.put(KEY, TENSORS)
    assert_same(cache.get(KEY))
    assert not in_memory or not list(tmp_path.iterdir())


def test_entries_are_safetensors_files_that_other_programs_read(tmp_path: Path) -> None:
    _, path = make_cache(tmp_path)
    with safe_open(path, "pt") as file:
        assert_same({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a dict)
        assert len(file.metadata()["sha256"]) == 64


def test_memory_holds_a_copy_and_not_the_larger_tensor_behind_a_view() -> None:
    cache, source = TensorCache(None), torch.zeros(1000, 4)
    cache.put(KEY, {"a": source[:2]})
    source += 1
    kept = cache.get(KEY)["a"]
    assert kept.sum() == 0 and kept.untyped_storage().nbytes() == 2 * 4 * 4


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.99])
def test_truncated_entry_counts_as_missing_and_is_said(
    said: list[str], tmp_path: Path, share: float
) -> None:
    cache, path = make_cache(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert cache.get(KEY) is None
    assert len(said) == 1 and str(path) in said[0]
    cache.put(KEY, TENSORS)
    assert_same(cache.get(KEY))


def test_any_changed_byte_of_header_or_tensors_is_noticed(tmp_path: Path) -> None:
    cache, path = make_cache(tmp_path)
    whole = path.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    for place in (*range(header_end), header_end + 17, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert cache.get(KEY) is None, place
    path.write_bytes(whole.replace(b'"F32"', b'"I32"'))
    assert cache.get(KEY) is None


def test_an_entry_is_hashed_once_until_its_file_is_another(
    said: list[str], tmp_path: Path, monkeypatch
) -> None:
    cache, path = make_cache(tmp_path)
    hashed, content_hash = [], _hashed
    monkeypatch.setattr(
        "toolkit.files.tensor_cache._hashed",
        lambda *args: hashed.append(1) or content_hash(*args),
    )
    for _ in range(3):
        assert_same(cache.get(KEY))
    assert len(hashed) == 1
    os.utime(path, (1, 1))
    assert_same(cache.get(KEY))
    assert len(hashed) == 2

    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)  # as long as before; only its time of change is another
    assert cache.get(KEY) is None and len(said) == 1
    cache.put(KEY, TENSORS)
    assert_same(cache.get(KEY))
    path.write_bytes(path.read_bytes()[:-1])
    os.utime(path, (2, 2))
    assert cache.get(KEY) is None


def test_an_entry_under_another_key_is_not_taken(
    said: list[str], tmp_path: Path
) -> None:
    cache, path = make_cache(tmp_path)
    other = key_of(name="other")
    (tmp_path / other[:2]).mkdir(exist_ok=True)
    path.rename(tmp_path / other[:2] / f"{other}.safetensors")
    assert cache.get(other) is None and said


def test_a_killed_writer_leaves_no_entry(tmp_path: Path) -> None:
    def put() -> None:
        os.replace = lambda *_: os._exit(9)
        TensorCache(tmp_path).put(KEY, {"a": torch.ones(4)})

    assert killed(put)
    assert len(list(tmp_path.rglob("*.tmp"))) == 1
    cache = TensorCache(tmp_path)
    assert cache.get(KEY) is None
    cache.put(KEY, TENSORS)
    assert_same(cache.get(KEY))


def test_failed_write_keeps_the_old_entry_and_no_rubbish(
    tmp_path: Path, monkeypatch
) -> None:
    cache, _ = make_cache(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        cache.put(KEY, {"a": torch.zeros(1)})
    assert_same(cache.get(KEY))
    assert list(tmp_path.rglob("*.tmp")) == []


def test_target_held_open_on_windows_is_no_failure(tmp_path: Path, monkeypatch) -> None:
    cache, _ = make_cache(tmp_path)

    def held(*_: object) -> None:
        raise PermissionError("in use")

    monkeypatch.setattr(os, "replace", held)
    cache.put(KEY, TENSORS)
    assert_same(cache.get(KEY))
    with pytest.raises(RunError, match="in use"):
        cache.put(key_of(name="new"), TENSORS)


def test_key_depends_on_every_part_and_not_on_their_order() -> None:
    keys = {
        key_of(a=1, b="x"),
        key_of(a=2, b="x"),
        key_of(a=1, b="y"),
        key_of(a=1),
        key_of(a="1", b="x"),
    }
    assert len(keys) == 5
    assert key_of(a=(1, 2), b="x") == key_of(b="x", a=[1, 2])
    with pytest.raises(TypeError):
        key_of(path=Path("a"))
