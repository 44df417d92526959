"""The quantized transformer is kept on the disk: the same bits, complete or absent,
made again where it is damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.processes import until
from tests.small_kept import read_small, small_kept, small_start
from toolkit.config.sections.model import ModelConfig
from toolkit.errors import RunError
from toolkit.files.mapped import is_mapped
from toolkit.memory.offload import BlockSwap, HostBlock
from toolkit.models import kept
from toolkit.models.families import kept_bytes
from toolkit.models.kept import kept_entries
from toolkit.models.qwen_image.modulation_cache import ModulationCache
from toolkit.networks.lora import DoraNetwork
from toolkit.train.base_model import kept_name, load_base_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def every_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")


def transformer(
    model: Path, folder: Path, dtype: torch.dtype = torch.bfloat16, **keys: object
) -> torch.nn.Module:
    section = ModelConfig(name_or_path=str(model), quantize=True, **keys)
    return load_base_model(
        section, CPU, dtype, training_folder=str(folder), keep=True
    ).network_module


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name
    for (name, module), (_, twin) in zip(
        one.named_modules(), other.named_modules(), strict=True
    ):
        assert type(module) is type(twin), name
        own = {
            key: value for key, value in vars(module).items() if not key.startswith("_")
        }
        for key in own if module.__module__ == "toolkit.memory.quantization" else ():
            assert getattr(twin, key) == own[key], (name, key)


@pytest.mark.parametrize("qtype", ["int8", "float8", "int4", "uint3", "fp8_scaled"])
def test_a_second_start_has_the_bits_of_the_first(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qtype: str
) -> None:
    """And does not read the published weights again. The size of what is kept is known
    before."""
    keys = {"qtype": qtype, "quantized_products": qtype == "int8" and "int8"}
    fresh = transformer(tiny_model, tmp_path, **keys, keep_quantized=False)
    assert not kept_entries(tmp_path / "_cache")
    assert_same(fresh, transformer(tiny_model, tmp_path, **keys))
    (entry,) = kept_entries(tmp_path / "_cache")
    section = ModelConfig(name_or_path=str(tiny_model), quantize=True, qtype=qtype)
    headers = 8192 * len(list(entry.folder.glob("*.safetensors")))
    state = fresh.state_dict()
    rotations = [state[name].nbytes for name in state if name.endswith("rotation_SS")]
    expected = kept_bytes(section, 2) + sum(rotations)
    assert abs(entry.bytes - expected) < 0.1 * entry.bytes + 4 * headers
    assert bool(rotations) == (qtype == "int8")
    monkeypatch.setattr(
        "toolkit.models.loading.ShardReader",
        lambda *_: pytest.fail("the weights are read"),
    )
    assert_same(fresh, transformer(tiny_model, tmp_path, **keys))
    assert [one.folder for one in kept_entries(tmp_path / "_cache")] == [entry.folder]


@pytest.mark.slow
def test_tensors_begin_at_multiples_of_64_bytes_on_each_start(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Otherwise a CPU may round in another way: with a recovery adapter that is read,
    the first start differed from the second."""
    keys = {
        "dtype": torch.float32,
        "qtype": "uint3",
        "accuracy_recovery_adapter": "auto",
    }
    starts = {
        "makes the adapter": {"keep_quantized": False},
        "first": {},  # reads the adapter
        "second": {},
        "mapped": {"blocks_to_swap": 1},
    }
    for start, more in starts.items():
        state = transformer(tiny_model, tmp_path, **keys, **more).state_dict()
        assert any("down_RI" in name for name in state)
        unaligned = [name for name, tensor in state.items() if tensor.data_ptr() % 64]
        assert not unaligned, start


@pytest.mark.parametrize("start", ["first", "second"])
def test_waiting_blocks_stay_in_the_file_and_others_do_not(
    tiny_model: Path, tmp_path: Path, start: str
) -> None:
    if start == "second":
        transformer(tiny_model, tmp_path, qtype="int4")
    blocks = transformer(
        tiny_model, tmp_path, qtype="int4", blocks_to_swap=1
    ).transformer_blocks
    mapped = [
        [is_mapped(tensor) for tensor in block.state_dict().values()]
        for block in blocks
    ]
    assert [all(each) for each in mapped] == [False, True]
    assert [any(each) for each in mapped] == [False, True]
    waiting = HostBlock(blocks[1], CPU)
    assert waiting.is_mapped
    assert is_mapped(waiting.memory)
    sizes = sum(
        -(-tensor.nbytes // 256) * 256 for tensor in blocks[1].state_dict().values()
    )
    assert len(waiting.memory) <= sizes


def test_the_weights_of_a_table_stay_in_the_file_and_the_rest_is_one_piece(
    tiny_model: Path, tmp_path: Path
) -> None:
    found = transformer(
        tiny_model, tmp_path, qtype="int4", blocks_to_swap=1, modulation_table=True
    )
    plain, swapped = found.transformer_blocks
    assert all(map(is_mapped, plain.img_mod.state_dict().values()))
    assert not any(map(is_mapped, plain.attn.state_dict().values()))
    table = HostBlock(swapped.img_mod, CPU)
    del swapped.img_mod, swapped.txt_mod
    rest = HostBlock(swapped, CPU)
    assert table.is_mapped and rest.is_mapped
    assert len(rest.memory) <= sum(
        -(-tensor.nbytes // 256) * 256 for tensor in swapped.state_dict().values()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "use"),
    [
        (
            {"blocks_to_swap": 2},
            lambda model: DoraNetwork(
                ["transformer_blocks.1.attn.to_q"], 4, 4.0, dropout=0.0, seed=1
            ).attach(model),
        ),
        (
            {"modulation_table": True},
            lambda model: ModulationCache(
                model, CPU, torch.bfloat16, BlockSwap
            ).prefetch_timesteps([0.5]),
        ),
    ],
    ids=["dora", "table"],
)
def test_an_entry_that_is_overwritten_meanwhile_is_no_weight(
    tiny_model: Path, tmp_path: Path, keys: dict, use
) -> None:
    """Also where weights are used before they are brought to the device."""
    model = transformer(tiny_model, tmp_path, qtype="int8", **keys)
    (entry,) = kept_entries(tmp_path / "_cache")
    for file in entry.folder.glob("*.safetensors"):
        os.utime(file, (1, 1))
        file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(RunError, match=r"keep_quantized: false") as caught:
        use(model)
    assert str(caught.value).startswith(f"{entry.folder}")


def test_nothing_is_mapped_where_weights_take_each_others_place(
    tiny_model: Path, tmp_path: Path
) -> None:
    section = ModelConfig(name_or_path=str(tiny_model), quantize=True, blocks_to_swap=1)
    for _ in range(2):
        keep = {"training_folder": str(tmp_path), "keep": True, "maps": False}
        found = load_base_model(section, CPU, torch.bfloat16, **keep).network_module
        assert not any(map(is_mapped, found.state_dict().values()))


# ---------------------------------------------------------------- what its name says


def merged_file(folder: Path) -> Path:
    file = folder / "merged.safetensors"
    up, down = torch.ones(64, 2), torch.ones(2, 64)
    name = "transformer.transformer_blocks.0.attn.to_q"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, file)
    return file


def test_each_thing_that_decides_the_bits_has_an_entry_of_its_own(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    lora = merged_file(tmp_path)
    names = set()

    def add(
        dtype: torch.dtype = torch.bfloat16, device: str = "cpu", **keys: object
    ) -> None:
        keys = {"qtype": "int4", **keys}
        names.add(
            kept_name(
                ModelConfig(name_or_path=str(model), quantize=True, **keys),
                dtype,
                device,
            )
        )

    add()
    add(blocks_to_swap=1, modulation_table=False)  # the same bits
    add(device="cuda", low_vram=True)  # quantized on the CPU
    assert len(names) == 1
    add(qtype="int8")
    add(qtype="int8", quantized_products="int8")
    add(dtype=torch.float32)
    add(device="cuda")
    add(accuracy_recovery_adapter="auto")
    add(accuracy_recovery_adapter=str(lora))
    add(base_loras=[str(lora)])
    add(base_loras=[{"path": str(lora), "multiplier": 0.5}])
    (shard := next((model / "transformer").glob("*.safetensors"))).write_bytes(
        shard.read_bytes()[:-1] + b"\7"
    )
    add()
    save_file({"other": torch.ones(1)}, lora)
    add(base_loras=[str(lora)])
    assert len(names) == 11


@pytest.mark.slow
def test_merged_weights_are_in_the_entry(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {
        "qtype": "int8",
        "base_loras": [str(merged_file(tmp_path))],
        "accuracy_recovery_adapter": "auto",
    }
    first = transformer(tiny_model, tmp_path, **keys)
    assert_same(first, transformer(tiny_model, tmp_path, **keys))
    assert "read from" in caplog.text
    (entry,) = kept_entries(tmp_path / "_cache")
    damage(entry.folder, "transformer_blocks.0")
    # the files of both are read again
    assert_same(first, transformer(tiny_model, tmp_path, **keys))


# ---------------------------------------------------------------- damage, kills, other
# processes


def damage(folder: Path, name: str) -> None:
    file = folder / f"{name}.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def swap(one: Path, two: Path) -> None:
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def edit_header(file: Path, edit: Callable[[dict], object]) -> None:
    """Changes the header, and no byte behind it."""
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    edit(header)
    text = json.dumps(header).encode().ljust(size)
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])


def exchange(header: dict) -> None:
    one, two = "attn.to_q.bias", "attn.to_k.bias"
    header[one], header[two] = header[two], header[one]


def other_type(header: dict) -> None:
    header["attn.norm_q.weight"]["dtype"] = "F16"  # it is BF16


def edit_list(folder: Path, **changes: object) -> None:
    listed = json.loads((folder / kept.MANIFEST).read_text())
    (folder / kept.MANIFEST).write_text(json.dumps({**listed, **changes}))


def sparse(file: Path) -> None:
    os.truncate(file, 200 * 10**9)


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Puts something else in the place of a file."""

    def put(file: Path) -> None:
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink()
        make(file)

    return put


def linked(file: Path) -> None:
    """The same bytes behind a link."""
    other = file.parent.parent.parent / "elsewhere"
    shutil.copy(file, other)
    file.unlink()
    file.symlink_to(other)


def loop(file: Path) -> None:
    file.symlink_to(file.name)


def harm(name: str, how: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: how(folder / name)


ONE, TWO = (f"transformer_blocks.{index}.safetensors" for index in range(2))

DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit": lambda folder: damage(folder, "transformer_blocks.1"),
    "a bit of the rest": lambda folder: damage(folder, "rest"),
    "cut off": harm(TWO, cut),
    "empty": harm(ONE, lambda file: file.write_bytes(b"")),
    "a file is missing": harm("rest.safetensors", Path.unlink),
    "another block": lambda folder: shutil.copy(
        folder / "rest.safetensors", folder / ONE
    ),
    "text": harm("rest.safetensors", lambda file: file.write_text("{}" * 30)),
    "two blocks exchanged": lambda folder: swap(folder / ONE, folder / TWO),
    "two offsets exchanged": harm(ONE, lambda file: edit_header(file, exchange)),
    "another type": harm(ONE, lambda file: edit_header(file, other_type)),
    "no metadata": harm(
        ONE,
        lambda file: edit_header(file, lambda header: header.update(__metadata__=None)),
    ),
    "added": harm("more.safetensors", lambda file: file.write_bytes(b"")),
    "added below": harm("more", lambda file: (file.mkdir(), (file / "a").touch())),
    "a pipe": harm(ONE, instead(os.mkfifo)),
    "a folder": harm(ONE, instead(Path.mkdir)),
    "a link": harm(ONE, linked),
    "a link to itself": harm(ONE, instead(loop)),
    "200 GB": harm(TWO, sparse),
    "no list": harm(kept.MANIFEST, Path.unlink),
    "an empty list": harm(kept.MANIFEST, lambda file: file.write_bytes(b"")),
    "a list of 200 GB": harm(kept.MANIFEST, sparse),
    "a pipe for a list": harm(kept.MANIFEST, instead(os.mkfifo)),
    "a folder for a list": harm(kept.MANIFEST, instead(Path.mkdir)),
    "of another entry": lambda folder: edit_list(folder, entry="int4_0123"),
    "no files listed": lambda folder: edit_list(folder, crc32=None),
    "a pipe for an entry": instead(os.mkfifo),
    "a file for an entry": instead(Path.touch),
    "an empty entry": instead(Path.mkdir),
}


@pytest.mark.slow
def test_a_damaged_entry_is_reported_and_made_again(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = transformer(tiny_model, tmp_path, qtype="int4")
    (entry,) = kept_entries(tmp_path / "_cache")
    for what, damaged in DAMAGES.items():
        caplog.clear()
        damaged(entry.folder)
        assert_same(first, transformer(tiny_model, tmp_path, qtype="int4"))
        said = [one.message for one in caplog.records if one.levelname == "WARNING"]
        assert len(said) == 1, what
        assert "the kept model is damaged (" in said[0], what
        assert "made again" in said[0], what
    caplog.clear()
    assert_same(first, transformer(tiny_model, tmp_path, qtype="int4"))
    assert "read from" in caplog.text


def test_an_entry_of_an_older_version_is_made_again(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transformer(tiny_model, tmp_path, qtype="int4")
    (entry,) = kept_entries(tmp_path / "_cache")
    manifest = entry.folder / kept.MANIFEST
    manifest.write_text(json.dumps({"model": entry.model, "bytes": entry.bytes}))
    transformer(tiny_model, tmp_path, qtype="int4")
    (said,) = [one.message for one in caplog.records if one.levelname == "WARNING"]
    assert said.startswith(f"{entry.folder}: the kept model is of an older version")
    assert "damaged" not in said and said.endswith("it is made again")
    assert "crc32" in json.loads(manifest.read_text())


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 61])
def test_each_bit_of_a_header_and_of_the_list_is_one_that_matters_or_is_noticed(
    tmp_path: Path, every: int
) -> None:
    """Never a traceback, and never other weights."""
    block = small_start(tmp_path)
    folder, unnoticed = tmp_path / "models" / "small", set()
    for name in ("block.safetensors", kept.MANIFEST):
        raw = (folder / name).read_bytes()
        end = len(raw.rstrip()) if name == kept.MANIFEST else raw.index(b"}}") + 2
        for bit in range(0, 8 * end, every):
            changed = bytearray(raw)
            changed[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(changed)
            entry = kept.KeptReader(small_kept(tmp_path))
            try:
                entry.compare_files()
                assert_same(block, read_small(entry))
            except kept.DamagedEntryError:
                continue
            unnoticed.add(name)
        (folder / name).write_bytes(raw)
    assert unnoticed == {kept.MANIFEST}  # its label, and its white space


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")]
)
def test_what_the_machine_lacks_while_an_entry_is_read_is_no_damage(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The line names the kept model, not the published one."""
    transformer(tiny_model, tmp_path, qtype="int4")
    (entry,) = kept_entries(tmp_path / "_cache")

    def none_left(*_: object) -> None:
        raise error

    monkeypatch.setattr(kept, "_read_into", none_left)
    with pytest.raises(RunError, match=f"^{entry.folder}/.*: cannot be read: th"):
        transformer(tiny_model, tmp_path, qtype="int4")
    assert [one.folder for one in kept_entries(tmp_path / "_cache")] == [entry.folder]


@pytest.mark.parametrize(
    ("error", "start"),
    [
        (OSError(errno.ENODEV, "No such device"), "first"),
        (RuntimeError("unable to mmap"), "second"),
    ],
    ids=["ENODEV", "unable"],
)
def test_a_disk_that_maps_nothing_is_a_warning(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    start: str,
) -> None:
    def refused(*_: Path) -> None:
        raise error

    fresh = transformer(tiny_model, tmp_path, qtype="int4", keep_quantized=False)
    if start == "second":
        transformer(tiny_model, tmp_path, qtype="int4")
    monkeypatch.setattr(kept, "mapped_bytes", refused)
    found = transformer(tiny_model, tmp_path, qtype="int4", blocks_to_swap=2)
    assert_same(fresh, found)
    assert not any(map(is_mapped, found.state_dict().values()))
    (said,) = [one.message for one in caplog.records if one.levelname == "WARNING"]
    assert f"cannot be mapped ({getattr(error, 'strerror', None) or error})" in said
    assert kept_entries(tmp_path / "_cache")


def test_a_damaged_entry_that_cannot_be_deleted_ends_no_run(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    first = transformer(tiny_model, tmp_path, qtype="int4")
    damage(kept_entries(tmp_path / "_cache")[0].folder, "rest")
    monkeypatch.setattr(kept, "remove", refused)
    assert_same(first, transformer(tiny_model, tmp_path, qtype="int4"))
    assert "the damaged one cannot be deleted (Permission denied)" in caplog.text


def test_what_others_write_stays_where_the_disk_has_no_locks(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.files.writing.fcntl", None)
    other = tmp_path / "_cache" / "models" / ".int8_other.01234567.tmp"
    other.mkdir(parents=True)
    transformer(tiny_model, tmp_path, qtype="int4")
    assert other.is_dir() and len(kept_entries(tmp_path / "_cache")) == 1


def forked(work: Callable[[], object]) -> int:
    """The id of a process that does this work and ends."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="no processes are forked on Windows"
)
@pytest.mark.parametrize("at", ["transformer_blocks.1", "manifest"])
def test_killed_while_writing_the_entry_is_absent(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def killing(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def called(path: Path, *given: object) -> object:
            if at in (name, path.stem):
                path.write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            return call(path, *given)

        return called

    def killed() -> None:
        monkeypatch.setattr(kept, "_write", killing("", kept._write))
        monkeypatch.setattr(kept, "write_json", killing("manifest", kept.write_json))
        transformer(tiny_model, tmp_path, qtype="int4")

    assert os.waitpid(forked(killed), 0)[1] == signal.SIGKILL
    assert not kept_entries(tmp_path / "_cache")
    assert list((tmp_path / "_cache" / "models").iterdir())  # what is left of it
    transformer(tiny_model, tmp_path, qtype="int8")  # of another entry
    (entry,) = kept_entries(tmp_path / "_cache")
    assert list((tmp_path / "_cache" / "models").iterdir()) == [entry.folder]


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="no processes are forked on Windows"
)
def test_two_at_once_write_it_once(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun, write = tmp_path / "begun", kept._write

    def slowly(*given: object) -> int:
        begun.touch()
        time.sleep(0.3)
        return write(*given)

    def first() -> None:
        monkeypatch.setattr(kept, "_write", slowly)
        transformer(tiny_model, tmp_path, qtype="int4")

    child = forked(first)
    until(begun.exists)
    monkeypatch.setattr(kept, "_write", lambda *_: pytest.fail("it is written twice"))
    transformer(tiny_model, tmp_path, qtype="int4")
    os.waitpid(child, 0)
    assert "waits for another process" in caplog.text
    assert len(kept_entries(tmp_path / "_cache")) == 1


# ---------------------------------------------------------------- the disk


def test_without_room_there_is_one_warning_and_no_entry(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(kept, "LEAST_FREE", 10**18)
    fresh = transformer(tiny_model, tmp_path, qtype="int4", blocks_to_swap=1)
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "model.keep_quantized: the quantized model is not kept in" in warning.message
    assert "stay free" in warning.message
    assert not kept_entries(tmp_path / "_cache")
    monkeypatch.setattr(kept, "LEAST_FREE", 0)
    assert_same(fresh, transformer(tiny_model, tmp_path, qtype="int4"))


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_entry_and_not_the_run(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At each of the files that an entry has."""
    fresh = transformer(tiny_model, tmp_path, qtype="int4", keep_quantized=False)
    write, write_json = kept._write, kept.write_json

    def full(call: Callable[..., object], at: int, calls: count) -> Callable:
        def called(*given: object) -> object:
            if next(calls) == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*given)

        return called

    for at in range(4):
        caplog.clear()
        calls = count()
        monkeypatch.setattr(kept, "_write", full(write, at, calls))
        monkeypatch.setattr(kept, "write_json", full(write_json, at, calls))
        found = transformer(tiny_model, tmp_path, qtype="int4", blocks_to_swap=1)
        said = [one.message for one in caplog.records if one.levelname == "WARNING"]
        assert len(said) == 1 and "is not kept" in said[0], at
        assert os.strerror(errno.ENOSPC) in said[0], at
        assert not list((tmp_path / "_cache" / "models").iterdir()), at
        # the block that waits is still in the file, which has no name any more
        assert_same(fresh, found)


def test_a_folder_that_cannot_be_written_ends_no_run(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "_cache").mkdir()
    (tmp_path / "_cache" / "models").write_text("")
    transformer(tiny_model, tmp_path, qtype="int4")
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "is not kept" in warning.message


@pytest.mark.slow
def test_the_one_used_longest_ago_makes_room(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = tmp_path / "_cache"
    for age, qtype in enumerate(("int2", "int4", "int8")):
        transformer(tiny_model, tmp_path, qtype=qtype)
        newest = kept_entries(cache)[-1].folder
        os.utime(newest / "kept.json", (1000 + age, 1000 + age))
    transformer(tiny_model, tmp_path, qtype="int2")  # used now
    oldest = next(entry for entry in kept_entries(cache) if "int4" in entry.model)
    needed = kept_bytes(
        ModelConfig(name_or_path=str(tiny_model), quantize=True, qtype="uint5"), 2
    )
    monkeypatch.setattr(kept, "LEAST_FREE", 10**6)
    monkeypatch.setattr(
        kept, "free_space", lambda _: 10**6 + needed - oldest.bytes // 2
    )
    transformer(tiny_model, tmp_path, qtype="uint5")
    assert {entry.folder.name.split("_")[0] for entry in kept_entries(cache)} == {
        "int2",
        "int8",
        "uint5",
    }
    assert f"{oldest.folder}: deleted to make room" in caplog.text


@pytest.mark.parametrize("keys", [{"quantize": False}, {"keep_quantized": False}])
def test_what_is_not_quantized_or_not_to_be_kept_writes_nothing(
    tiny_model: Path, tmp_path: Path, keys: dict
) -> None:
    section = ModelConfig(name_or_path=str(tiny_model), **{"quantize": True, **keys})
    assert load_base_model(
        section, CPU, torch.bfloat16, training_folder=str(tmp_path), keep=True
    ).network_module
    assert not (tmp_path / "_cache").exists()
