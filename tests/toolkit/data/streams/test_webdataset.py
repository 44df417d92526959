"""Streams of samples from shards: their order, resumes at every place, and what cannot
be read."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from tests.processes import until
from tests.toolkit.data.shard_server import png, serving, write_shard, write_tar
from toolkit.data.batches.dataloader import StreamSource
from toolkit.data.streams.sample_keys import SampleKeys
from toolkit.data.streams.shards import expand_shards
from toolkit.data.streams.webdataset import ShardStream, read_tar
from toolkit.errors import RunError

COUNTS = (5, 1, 4, 7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """17 samples in 4 shards; the last one is packed."""
    for number, count in enumerate(COUNTS):
        write_shard(
            tmp_path / (f"{number}.tar.gz" if number == 3 else f"{number}.tar"), count
        )
    return tmp_path


def stream(folder: Path, pattern: str = "*.tar*", **options) -> ShardStream:
    return ShardStream(
        expand_shards([f"{folder}/{pattern}"]),
        **{"seed": 5, "window": 6, "epochs": 2, **options},
    )


def captions(samples: Iterator[tuple]) -> list[str]:
    return [sample.caption for sample, _ in samples]


ALL = sorted(
    f"{shard}/{number}" for shard, count in enumerate(COUNTS) for number in range(count)
)

# ---------------------------------------------------------------- order


def test_each_epoch_has_every_sample_once_in_an_order_of_seed_and_epoch(
    folder: Path,
) -> None:
    whole = captions(stream(folder).read(None))
    first, second = whole[:17], whole[17:]
    assert sorted(first) == sorted(second) == ALL
    one_shard = captions(stream(folder, "3.tar.gz", window=7).read(None))
    assert one_shard[:7] != one_shard[7:], "the windows"
    assert stream(folder).order(0) != stream(folder).order(1), "the shards"
    other_seed = captions(stream(folder, seed=6).read(None))[:17]
    assert len({tuple(ALL), tuple(first), tuple(second), tuple(other_seed)}) == 4
    assert captions(stream(folder).read(None)) == whole
    plain = captions(stream(folder, window=1, epochs=1).read(None))
    shards = [shard.name[len(f"{folder}/")] for shard in stream(folder).order(0)]
    assert plain == [
        f"{shard}/{number}" for shard in shards for number in range(COUNTS[int(shard)])
    ]


@pytest.mark.parametrize("options", [{"window": 1}, {"batch_size": 4}], ids=str)
def test_a_resume_at_any_cursor_gives_the_samples_of_an_uninterrupted_stream(
    folder: Path, options: dict
) -> None:
    whole = list(stream(folder, **options).read(None))
    assert len(whole) == 34
    for done, (_, cursor) in enumerate(whole, start=1):
        assert (
            list(stream(folder, **options).read(json.loads(json.dumps(cursor))))
            == whole[done:]
        )


FORMER_ORDER = "0/2 0/4 0/3 1/0 0/1 0/0 3/4 3/2 3/5 3/0 3/1 3/3 2/2 3/6 2/3 2/1 2/0 "
FORMER_ORDER += "3/5 3/3 3/4 3/2 3/0 3/1 3/6 0/1 0/0 0/4 0/2 0/3 2/2 2/1 2/0 1/0 2/3"
"""Of the stream of these tests when shards were read one after the other."""


def test_a_cursor_from_when_shards_were_read_one_after_the_other_goes_on_in_that_order(
    folder: Path,
) -> None:
    one = list(stream(folder, open_shards=1).read(None))
    assert [sample.caption for sample, _ in one] == FORMER_ORDER.split()
    for done, (_, cursor) in enumerate(one, start=1):
        places = cursor.pop("places")
        place = dict(
            zip(
                ("shard", "sample", "byte"),
                places[0] if places else (0, 0, 0),
                strict=True,
            )
        )
        found = list(stream(folder).read(cursor | place))
        assert captions(found) == FORMER_ORDER.split()[done:]
        assert all({"shard", "sample", "byte"} <= behind.keys() for _, behind in found)


def test_a_batch_has_samples_of_several_shards(tmp_path: Path) -> None:
    for number in range(16):
        write_shard(tmp_path / f"{number:02}.tar", 24)
    found = captions(stream(tmp_path, window=48, batch_size=16, epochs=1).read(None))
    assert len(set(found)) == len(found) == 16 * 24
    shards = [
        len({caption.split("/")[0] for caption in found[at : at + 16]})
        for at in range(0, len(found), 16)
    ]
    assert sum(shards) / len(shards) > 6, "of 8 that are open"


def test_a_resume_reads_nothing_of_what_lies_before_its_window(folder: Path) -> None:
    with serving(folder) as server:

        def remote() -> ShardStream:
            return ShardStream(
                expand_shards([f"{server.address}/big.tar"]),
                seed=1,
                window=2,
                epochs=1,
                pauses=(0,),
            )

        size = write_shard(folder / "big.tar", 40).stat().st_size
        whole = list(remote().read(None))
        server.sent = 0
        cursor = whole[29][1]
        [(_, sample, byte)] = cursor["places"]
        assert (sample, cursor["index"]) == (30, 0)
        assert list(remote().read(cursor)) == whole[30:]
        assert server.sent == size - byte < size / 2


def test_shards_that_were_moved_are_read_on(folder: Path) -> None:
    whole = list(stream(folder).read(None))
    moved = shutil.copytree(folder, folder / "moved")
    assert captions(stream(moved).read(whole[8][1])) == [
        sample.caption for sample, _ in whole[9:]
    ]


def test_a_stop_waits_for_no_server(folder: Path) -> None:
    with serving(folder) as server:
        server.silent_after = 100
        waits = replace(
            stream(folder),
            shards=expand_shards([f"{server.address}/0.tar"]),
            stopping=lambda: True,
        )
        with pytest.raises(
            RunError, match="a stop was requested while the run waited for its shards"
        ):
            next(waits.read(None))
        server.released.set()


CHANGED = (
    "the shards of the stream, its window or the batch size have changed since the "
    "checkpoint: it goes on with epoch 2"
)


def test_another_list_of_shards_begins_with_the_next_epoch(
    folder: Path, said: list[str]
) -> None:
    cursor = list(islice(stream(folder).read(None), 3))[-1][1]
    write_shard(folder / "4.tar", 2)
    assert {
        behind["epoch"]
        for _, behind in list(stream(folder, epochs=3).read(cursor))[:-1]
    } == {1, 2}
    assert said == [CHANGED]


def test_a_stream_that_is_closed_leaves_no_thread_and_begins_no_epoch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = []

    def read(shard, byte, pauses, stop, wanted):
        epochs.append(stop)
        if len(epochs) == 2:
            stop.wait()
        return read_tar(shard, byte, pauses, stop, wanted)

    monkeypatch.setattr("toolkit.data.streams.webdataset.read_tar", read)
    before = threading.active_count()
    samples = stream(folder, "0.tar", epochs=100).read(None)
    next(samples)
    until(lambda: len(epochs) == 2)
    assert threading.active_count() == before + 1
    samples.close()
    until(lambda: threading.active_count() == before)
    assert len(epochs) == 2


def test_a_stream_that_is_closed_waits_for_no_server(folder: Path) -> None:
    with serving(folder) as server:
        shards = expand_shards([f"{server.address}/{{0,2}}.tar"])
        remote = ShardStream(shards, seed=5, window=3, pauses=(2.0,), open_shards=1)
        second = remote.order(0)[1].name
        server.busy = {second.removeprefix(server.address)}
        samples = remote.read(None)
        next(samples)
        until(lambda: len(server.requests) > 1)
        samples.close()
    assert [server.address + path for path, _ in server.requests][1:] == [second], (
        "no second attempt"
    )


# ---------------------------------------------------------------- batches


def test_batches_end_with_the_epoch_and_go_on_from_any_cursor(folder: Path) -> None:
    def source() -> StreamSource:
        whole = stream(folder, batch_size=4)
        return StreamSource(
            whole.read, lambda spec: spec, batch_size=4, epoch_of=whole.epoch_of
        )

    assert stream(folder).epoch_of(None) == 0
    batches = list(source().iterate(None))
    assert [len(batch.spec.items) for batch in batches] == [4, 4, 4, 4, 1] * 2
    assert [batch.ends_epoch for batch in batches] == [
        False,
        False,
        False,
        False,
        True,
    ] * 2
    assert [batch.spec.epoch for batch in batches] == [0] * 5 + [1] * 5
    assert [position for batch in batches for position in batch.spec.positions] == list(
        range(34)
    )
    for done, batch in enumerate(batches, start=1):
        assert list(source().iterate(batch.cursor)) == batches[done:]


@pytest.mark.parametrize("seed", range(2))
def test_a_batch_holds_neighbours_by_aspect_ratio(tmp_path: Path, seed: int) -> None:
    wide, tall = png(size=(8, 6)), png(size=(6, 8))
    files = {f"{number:02}.png": tall if number % 2 else wide for number in range(22)}
    texts = {f"{number:02}.txt": b"x" for number in range(22)}
    write_tar(tmp_path / "0.tar", dict(sorted({**files, **texts}.items())))
    keys = SampleKeys(label="txt")
    samples = [
        sample
        for sample, _ in stream(
            tmp_path, seed=seed, keys=keys, window=6, batch_size=4, epochs=1
        ).read(None)
    ]
    batches = [
        [sample.size for sample in samples[at : at + 4]] for at in range(0, 22, 4)
    ]
    assert [len(set(sizes)) for sizes in batches] == [1, 1, 1, 1, 2, 1], (
        "windows of 8; the short batch is the last"
    )


# ---------------------------------------------------------------- samples of a tar


@pytest.mark.parametrize(
    "form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]
)
def test_files_of_one_key_are_a_sample_that_can_be_read_from_its_byte(
    tmp_path: Path, form: int
) -> None:
    long = "d/" + "k" * (120 if form != tarfile.USTAR_FORMAT else 60)
    files = {
        "a/b.v1.JPG": b"1",
        "a/b.json": b"2",
        ".hidden": b"",
        "README": b"x",
        f"{long}.png": b"3",
        f"{long}.txt": b"4" * 700,
        "e.png": b"5",
        "e.PNG": b"6",
    }
    (shard,) = expand_shards([str(write_tar(tmp_path / "a.tar", files, format=form))])
    whole = list(read_tar(shard))
    assert [(sample.key, sample.fields) for sample in whole] == [
        ("a/b", {"v1.jpg": b"1", "json": b"2"}),
        (long, {"png": b"3", "txt": b"4" * 700}),
        ("e", {"png": b"5"}),
        ("e", {"png": b"6"}),
    ]
    for number, sample in enumerate(whole):
        assert list(read_tar(shard, sample.byte)) == whole[number:]
    assert [sample.fields.get("txt") for sample in read_tar(shard, wanted={"png"})] == [
        None,
        b"",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("keys", "fields", "caption"),
    [
        (SampleKeys(), {"json": b'\xef\xbb\xbf{"prompt": " a cat "}'}, "a cat"),
        (SampleKeys(label="txt"), {"txt": b"a dog\n", "json": b"{}"}, "a dog"),
        (SampleKeys(label="txt"), {"txt": b'{"caption": "a dog", "n": 1}'}, "a dog"),
        (SampleKeys(label="txt"), {"txt": b"['a dog']"}, "a dog"),
        (SampleKeys(), {"json": b'{"prompt": "[\\"a dog\\"]"}'}, "a dog"),
        (
            SampleKeys(label="meta.json", caption="text"),
            {"meta.json": '{"text": "é"}'.encode()},
            "é",
        ),
    ],
)
def test_the_caption_is_where_the_keys_say(
    keys: SampleKeys, fields: dict[str, bytes], caption: str
) -> None:
    assert keys.caption_of(fields) == caption


# ---------------------------------------------------------------- what cannot be read


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (
            SampleKeys(image=("jpg", "jpeg")),
            "it has no jpg or jpeg, only json, png. Set image_key: png",
        ),
        (SampleKeys(label="txt"), "it has no txt, only json, png. Set label_key: json"),
        (
            SampleKeys(caption="text"),
            r"it has no text in its json \(whose keys are prompt\), only json, png. Set caption_key: prompt\.",
        ),
    ],
)
def test_wrong_keys_end_the_run_with_the_keys_that_are_there(
    folder: Path, keys: SampleKeys, reason: str
) -> None:
    with pytest.raises(RunError, match=reason) as caught:
        list(stream(folder, keys=keys).read(None))
    told = re.search(r"Set (\w+)_key: (\w+)", str(caught.value))
    assert told
    value = (told[2],) if told[1] == "image" else told[2]
    right = replace(keys, **{told[1]: value})
    assert sorted(captions(stream(folder, keys=right, epochs=1).read(None))) == ALL


PAIRS = [(f"{number:03}", f"text {number}".encode()) for number in range(7)]
PACK = (
    "Set image_key, label_key and caption_key, or pack the files of each sample one after the other and in one "
    "folder, as `tar --sort=name` does."
)


def files_of_pairs(files: dict[str, bytes | None]) -> list[tuple[str, bytes]]:
    """For each pair the files of these names; None: its text."""
    return [
        (file.format(name), text if data is None else data)
        for name, text in PAIRS
        for file, data in files.items()
    ]


ODD = {
    # kind: (files, keys, what the error says; "": the captions are read)
    "a text under another key": (
        files_of_pairs({"{}.input.jpg": png(), "{}.outputs.txt": None}),
        SampleKeys(image=("input.jpg",), label="outputs.txt"),
        "",
    ),
    "a text under any key": (
        files_of_pairs({"{}.png": png(), "{}.prompt": None}),
        SampleKeys(label="prompt"),
        "",
    ),
    "the key that holds text": (
        files_of_pairs({"{}.caption": None, "{}.png": png()}),
        SampleKeys(),
        "it has no json, only caption, png. Set label_key: caption.",
    ),
    "JSON without a caption, and a text": (
        files_of_pairs({"{}.json": b"{}", "{}.png": png(), "{}.txt": None}),
        SampleKeys(),
        "it has no prompt in its json (whose keys are ), only json, png, txt. Set label_key: txt.",
    ),
    "keys with a dot": (
        files_of_pairs({"{}.left.png": png(), "{}.txt": None}),
        SampleKeys(label="txt"),
        "A name ends at its first dot, and left.png stands behind that of '000'. Set image_key: left.png, or take the "
        "dots out of the names.",
    ),
    "names with dots": (
        files_of_pairs({"IMG.{}.png": png(), "IMG.{}.txt": None}),
        SampleKeys(label="txt"),
        "only 000.png, 000.txt, 001.png, 001.txt, 002.png and 9 more. A name ends at its first dot, and 000.png stands "
        "behind that of 'IMG'. Take the dots out of the names.",
    ),
    "a caption under another key of the JSON": (
        files_of_pairs({"{}.json": b'{"w": "9", "text": "x"}', "{}.png": png()}),
        SampleKeys(),
        "it has no prompt in its json (whose keys are text, w), only json, png. Set caption_key: text.",
    ),
    "texts whose keys have a dot": (
        files_of_pairs({"{}.a.txt": None, "{}.b.txt": None, "{}.png": png()}),
        SampleKeys(),
        "it has no json, only a.txt, b.txt, png. Set label_key: a.txt (or b.txt).",
    ),
    "an image and a text under keys of one's own": (
        files_of_pairs({"{}.img": png(), "{}.says": None}),
        SampleKeys(image=("img",), label="says"),
        "",
    ),
    "images and texts in two folders": (
        files_of_pairs({"img/{}.png": png()}) + files_of_pairs({"txt/{}.txt": None}),
        SampleKeys(label="txt"),
        f"it has no txt, only png. {PACK}",
    ),
    "a text in another encoding": (
        files_of_pairs({"{}.png": png(), "{}.txt": b"caf\xe9"}),
        SampleKeys(label="txt"),
        "its txt is not UTF-8 text: byte 0xe9 at offset 3. Save it as UTF-8.",
    ),
    "all images, then all texts": (
        files_of_pairs({"{}.png": png()}) + files_of_pairs({"{}.txt": None}),
        SampleKeys(label="txt"),
        f"it has no txt, only png. {PACK}",
    ),
    "all texts, then all images": (
        files_of_pairs({"{}.txt": None}) + files_of_pairs({"{}.png": png()}),
        SampleKeys(label="txt"),
        PACK,
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_the_names_of_a_shard_s_files_mean_is_told(
    tmp_path: Path, kind: str
) -> None:
    files, keys, message = ODD[kind]
    write_tar(tmp_path / "0.tar", dict(files))
    whole = stream(tmp_path, keys=keys, window=1, epochs=1)
    if not message:
        assert (
            [sample.caption for sample in whole.first(7)]
            == captions(whole.read(None))
            == [text.decode() for _, text in PAIRS]
        )
        return
    with pytest.raises(RunError) as caught:
        whole.first(8)
    assert message in str(caught.value)
    assert (PACK in str(caught.value)) == message.endswith(PACK)


BROKEN = {
    "0.png": b"no image",
    "0.json": b'{"prompt": "x"}',
    "1.png": png(),
    "1.json": b"{",
    "2.png": png(),
    "2.json": b"[1]",
    "3.png": png(),
    "3.json": b'{"prompt": 3}',
    "4.json": b'{"prompt": "x"}',
    "5.png": png(),
    "5.json": b"{\"prompt\": \"['a', 'b']\"}",
    "6.png": png(),
    "6.json": b'{"prompt": "{\\"caption\\": \\"a cat"}',
}


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        ("0", "its image is not a JPEG, PNG, WebP, AVIF, HEIC, BMP or TIFF image, or is damaged"),
        ("1", "its json cannot be read: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("2", "its json cannot be read: no object with keys"),
        ("3", "its json cannot be read: prompt is not text"),
        ("4", "it has no jpg or jpeg or png or webp, only json"),
        ("5", "its json is a list of captions"),
        ("6", "its json is a JSON document, and is cut or damaged: the model is trained on sentences"),
    ],
)  # fmt: skip
def test_the_first_sample_that_cannot_be_used_is_named(
    tmp_path: Path, number: str, reason: str
) -> None:
    good = {"a.png": png(), "a.json": b'{"prompt": "y"}'}
    broken = {name: file for name, file in BROKEN.items() if name[0] == number}
    write_tar(tmp_path / "0.tar", good | broken)
    whole = stream(tmp_path, epochs=1)
    assert [sample.caption for sample in whole.first(1)] == ["y"]
    with pytest.raises(RunError) as caught:
        list(whole.read(None))
    remedies = {
        "4": PACK,
        "5": "Give each sample one.",
        "6": "Write the sentence alone, or as its 'caption'.",
    }
    remedy = remedies.get(number, "Repair it, or remove it from its shard.")
    assert str(caught.value) == f"{tmp_path}/0.tar/{number}: {reason}. {remedy}"


def test_a_damaged_shard_is_one_line(tmp_path: Path) -> None:
    for number in range(2):
        write_shard(tmp_path / f"{number}.tar", 8)
    bad = tmp_path / "1.tar"
    bad.write_bytes(bad.read_bytes()[:-12_000])
    with pytest.raises(
        RunError,
        match=r"1\.tar: is damaged behind sample \d of it .*Download or rebuild it, or remove it from the list\.$",
    ) as caught:
        list(stream(tmp_path).read(None))
    assert "\n" not in str(caught.value)


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 99735\n".encode()
OF_GIT_LFS = "is what Git LFS has in the place of a file that was not downloaded"
PULL = "Run 'git lfs pull' in its repository, or download the file by itself"


@pytest.mark.parametrize("name", ["0.tar", "0.tar.gz"])
@pytest.mark.parametrize("is_remote", [False, True])
def test_a_pointer_of_git_lfs_in_the_place_of_a_shard_is_named(
    tmp_path: Path, name: str, is_remote: bool
) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with serving(tmp_path) as server:
        place = f"{server.address}/{name}" if is_remote else f"{tmp_path}/{name}"
        with pytest.raises(RunError) as caught:
            list(ShardStream(expand_shards([place]), 5).read(None))
    remedy = f"{PULL}, or remove it from the list."
    assert str(caught.value) == f"{place}: {OF_GIT_LFS}. {remedy}"


@pytest.mark.parametrize("which", ["png", "txt"])
def test_pointers_of_git_lfs_inside_a_shard_are_named(
    tmp_path: Path, which: str
) -> None:
    """Also in the place of a caption, which would be trained as it stands."""
    files = {"0.png": png(), "0.txt": b"a"} | {f"0.{which}": POINTER}
    write_tar(tmp_path / "0.tar", files)
    with pytest.raises(RunError) as caught:
        list(stream(tmp_path, keys=SampleKeys(label="txt")).read(None))
    what = {"png": "its image", "txt": "its txt cannot be read: it"}[which]
    assert str(caught.value).startswith(
        f"{tmp_path}/0.tar/0: {what} {OF_GIT_LFS}. {PULL}"
    )


def test_a_shard_that_may_not_be_read_says_who_owns_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "0.tar", 1)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "0.tar")

    monkeypatch.setattr("toolkit.data.streams.shards.Shard.open", denied)
    with pytest.raises(
        RunError,
        match=r"0\.tar: cannot be read: Permission denied: it belongs to .*, mode 6",
    ):
        list(stream(tmp_path).read(None))


def test_shards_without_any_sample_are_an_error_not_an_endless_loop(
    tmp_path: Path,
) -> None:
    write_tar(tmp_path / "0.tar", {"README": b"x"})
    with pytest.raises(
        RunError,
        match=r"0\.tar: holds no sample\. Download or rebuild it, or remove it",
    ):
        list(stream(tmp_path, epochs=None).read(None))
    shards = stream(tmp_path)
    (tmp_path / "0.tar").unlink()
    with pytest.raises(RunError, match=r"0\.tar: cannot be read: No such file"):
        list(shards.read(None))


SAMPLE = {"0.png": png(), "0.json": b'{"prompt": "0/0"}'}
ZEROS = bytes(10_240)


def tar_of(
    *members: tuple[dict, bytes],
    end: bytes = bytes(1024),
    form: int = tarfile.PAX_FORMAT,
) -> bytes:
    """A tar of members with these fields of `TarInfo`, whatever their content is;
    `SAMPLE` comes first."""
    done = []
    for fields, content in [
        *(({"name": name}, content) for name, content in SAMPLE.items()),
        *members,
    ]:
        member = tarfile.TarInfo()
        member.size = len(content)
        for name, value in fields.items():
            setattr(member, name, value)
        done += [member.tobuf(form), content, bytes(-len(content) % 512)]
    return b"".join([*done, end])


def with_label(label: bytes) -> bytes:
    return tar_of(({"name": "1.png"}, png()), ({"name": "1.json"}, label))


def with_pax(records: bytes, name: str = "1.png") -> bytes:
    return tar_of(
        ({"name": "x", "type": tarfile.XHDTYPE}, records), ({"name": name}, png())
    )


ONE = tar_of()
HUGE = {"name": "1.mp4", "size": 2**60}
SURROGATE = b'{"prompt": "\\ud800"}'

SHARDS = {
    # kind: (file, samples that are read of it, what its one line says; "": it is whole)
    "whole": (ONE, 1, ""),
    "one block of zeros at its end": (ONE[:-512], 1, ""),
    "many zeros at its end": (ONE + ZEROS * 100, 1, ""),
    "links that belong to no sample": (
        tar_of(({"name": "a", "type": tarfile.SYMTYPE}, b"")),
        1,
        "",
    ),
    "folders with dots": (
        tar_of(({"name": "a.b", "type": tarfile.DIRTYPE}, b"")),
        1,
        "",
    ),
    "packed twice in a row": (
        gzip.compress(ONE[:1000]) + gzip.compress(ONE[1000:]),
        1,
        "",
    ),
    "packed, zeros behind it": (gzip.compress(ONE) + bytes(100), 1, ""),
    "empty": (b"", 0, "is damaged behind sample 0 of it (empty file)"),
    "text": (
        b"<!DOCTYPE html>" * 100,
        0,
        "is damaged behind sample 0 of it (invalid header)",
    ),
    "short text": (b"version https://git-lfs", 0, "(truncated header)"),
    "zeros": (ZEROS, 0, "holds no sample"),
    "many zeros": (ZEROS * 1000, 0, "holds no sample"),
    "zeros before it": (ZEROS + ONE, 0, "data follows its end-of-archive block"),
    "no sample": (ONE[512 * 4 :], 0, "holds no sample"),
    "two archives in one file": (ONE + ONE, 1, "data follows its end-of-archive block"),
    "text behind it": (ONE + b"x", 1, "data follows its end-of-archive block"),
    "a hole of zeros": (
        tar_of(end=bytes(512)) + ONE,
        1,
        "data follows its end-of-archive block",
    ),
    "no end": (ONE[:-1024], 1, "its end-of-archive block is missing"),
    "cut within a header": (ONE[: 512 * 2 + 100], 0, "is damaged behind sample 0"),
    "cut within a file": (
        tar_of(({"name": "1.png"}, png()))[:-1400],
        1,
        "(unexpected end of data)",
    ),
    "a damaged header": (ONE.replace(b"0.json", b"1.json"), 0, "(bad checksum)"),
    "another program's archive": (
        b"PK\x03\x04" + bytes(600),
        0,
        "is damaged behind sample 0",
    ),
    "packed, cut": (gzip.compress(ONE)[:-20], 0, "Compressed file ended"),
    "packed, without its checksum": (
        gzip.compress(ONE)[:-8],
        0,
        "Compressed file ended",
    ),
    "packed, another checksum": (
        gzip.compress(ONE)[:-8] + b"12345678",
        0,
        "CRC check failed",
    ),
    "packed, damaged": (
        gzip.compress(ONE)[:20] + b"\xff" * 9 + gzip.compress(ONE)[29:],
        0,
        "Error -3",
    ),
    "packed, text behind it": (gzip.compress(ONE) + b"text", 0, "Not a gzipped file"),
    "packed, not": (b"text", 0, "Not a gzipped file"),
    "packed twice": (
        gzip.compress(gzip.compress(ONE)),
        0,
        "is damaged behind sample 0",
    ),
    "packed zeros": (gzip.compress(ZEROS), 0, "holds no sample"),
    "packed nothing": (gzip.compress(b""), 0, "(empty file)"),
    "a file of 2**60 bytes": (
        tar_of((HUGE, b""), form=tarfile.GNU_FORMAT),
        0,
        "(a file of 1,152,921,504,606,846,976 b",
    ),
    "an image of 2**60 bytes": (
        tar_of((HUGE | {"name": "1.png"}, b""), form=tarfile.GNU_FORMAT),
        0,
        "(a file of 1,15",
    ),
    "a negative size": (
        tar_of((HUGE | {"size": -(2**60)}, b""), form=tarfile.GNU_FORMAT),
        1,
        "is damaged",
    ),
    "a size that is not a number": (with_pax(b"12 size=abc\n"), 1, "(bad checksum)"),
    "a huge size in its pax header": (
        with_pax(b"28 size=1152921504606846976\n"),
        0,
        "(a file of 1,152",
    ),
    "a pax header without numbers": (
        with_pax(b"abc"),
        1,
        "/1: it has no json",
    ),
    "a pax header of length 0": (with_pax(b"0 a=b\n"), 1, "is damaged behind sample 1"),
    "a pax header of another encoding": (
        with_pax(b"21 hdrcharset=BINARY\n14 path=\xff.png\n"),
        1,
        "it has no json",
    ),
    "a sparse map of words": (
        with_pax(b"25 GNU.sparse.map=a,b,c\n"),
        0,
        "is damaged behind sample 0",
    ),
    "a sparse file": (
        with_pax(
            b"30 GNU.sparse.map=0,1,%d,1\n32 GNU.sparse.size=%019d\n" % (2**30, 2**50)
        ),
        1,
        "/1: it has no jpg or jpeg or png or webp, only png (not a file)",
    ),
    "headers without end": (
        tar_of(*[({"name": "x", "type": tarfile.GNUTYPE_LONGNAME}, b"x")] * 3000),
        0,
        "is damaged behind sample 0 of it (maximum recursion depth",
    ),
    "a name with a line break": (
        tar_of(({"name": "1\n.p\nng"}, b"x")),
        1,
        "only p\\nng",
    ),
    "a name of NUL": (tar_of(({"name": "\0"}, b"x")), 1, ""),
    "a sample in links": (
        tar_of(
            *(
                (
                    {"name": f"1.{end}", "type": tarfile.LNKTYPE, "linkname": "0.png"},
                    b"",
                )
                for end in ("png", "json")
            )
        ),
        1,
        "/1: it has no jpg or jpeg or png or webp, only json (not a file), png (not a file)",
    ),
    "a device": (
        tar_of(({"name": "1.png", "type": tarfile.CHRTYPE}, b"")),
        1,
        "only png (not a file)",
    ),
    "a type that is not known": (
        tar_of(({"name": "1.png", "type": b"Z"}, png())),
        1,
        "only png (not a file)",
    ),
    "a sample twice": (
        tar_of(*(({"name": name}, content) for name, content in SAMPLE.items())),
        2,
        "",
    ),
    "an image without a label": (
        tar_of(({"name": "1.png"}, png())),
        1,
        "/1: it has no json, only png",
    ),
    "a label without an image": (
        tar_of(({"name": "1.json"}, b"{}")),
        1,
        "/1: it has no jpg or jpeg or png",
    ),
    "an image of zeros": (
        tar_of(({"name": "1.png"}, bytes(99)), ({"name": "1.json"}, b'{"prompt": ""}')),
        1,
        "its image",
    ),
    "half an image": (
        tar_of(
            ({"name": "1.png"}, png()[:20]), ({"name": "1.json"}, b'{"prompt": ""}')
        ),
        1,
        "its image",
    ),
    "a label of nothing": (with_label(b""), 1, "/1: its json cannot be read"),
    "a label of zeros": (with_label(bytes(40)), 1, "its json cannot be read"),
    "a label that is not UTF-8": (
        with_label(b'{"prompt": "\xff"}'),
        1,
        "its json is not UTF-8 text: byte 0xff at offset 12. Save it as UTF-8.",
    ),
    "a label nested deeply": (
        with_label(b"[" * 100_000),
        1,
        "its json cannot be read: maximum recursion depth",
    ),
    "a label with a long number": (
        with_label(b'{"prompt": ' + b"9" * 5000 + b"}"),
        1,
        "its json cannot be read",
    ),
    "a label with half a surrogate": (
        with_label(SURROGATE),
        1,
        "its json cannot be read: 'utf-8' codec",
    ),
    "a label with other keys": (
        with_label(b'{"text": "x"}'),
        1,
        "(whose keys are text)",
    ),
    "a label with a long key": (
        with_label(b'{"%s": 0}' % (b"k" * 10_000)),
        1,
        "(whose keys are kkk",
    ),
}


@pytest.mark.parametrize("kind", SHARDS)
def test_a_shard_of_any_kind_gives_its_samples_or_one_line(
    tmp_path: Path, kind: str
) -> None:
    content, count, line = SHARDS[kind]
    name = "0.tar.gz" if kind.startswith("packed") else "0.tar"
    (tmp_path / name).write_bytes(content)
    whole = stream(tmp_path, epochs=1, window=1)
    if not line:
        assert captions(whole.read(None)) == ["0/0"] * count
        return
    with pytest.raises(RunError) as caught:
        list(whole.read(None))
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/{name}") and line in said
    assert len(said.splitlines()) == 1 and len(said) < 700
    with nullcontext() if count else pytest.raises(RunError):
        assert [sample.caption for sample in whole.first(1)] == ["0/0"]
