import errno
import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatch
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
import torch

from tests.conftest import child_environment
from tests.processes import killed
from toolkit.errors import RunError, UserError
from toolkit.files import writing
from toolkit.files.writing import (
    MARKER,
    SAFETENSORS_TEMP_GLOB,
    TEMP_FILE_GLOB,
    TOOLKIT_ROOT,
    append_json_line,
    atomic_write,
    atomic_write_dir,
    find_config,
    folder_at,
    folder_lock,
    fsync,
    link,
    locked,
    only_tidy,
    python_path,
    read_chunks,
    read_source,
    remove,
    settle,
    settle_all,
    sha256_of,
    write_json,
    write_text,
)
from toolkit.networks.save import write_safetensors_verified


def test_the_new_file_takes_the_place_of_the_old_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    with atomic_write(path) as temporary, atomic_write(path) as other:
        temporary.write_text("new")
        other.write_text("of another writer")
        # a rename is atomic within one file system only
        assert temporary.parent == path.parent and temporary != other
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


def test_a_folder_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for turn in ("old", "new"):
        with atomic_write_dir(path) as temporary:
            assert (
                fnmatch(temporary.name, TEMP_FILE_GLOB)
                and temporary.parent == path.parent
            )
            (temporary / "part").mkdir()
            (temporary / "part" / turn).touch()
        assert [entry.name for entry in (path / "part").iterdir()] == [turn]
    with pytest.raises(KeyError), atomic_write_dir(path) as temporary:
        (temporary / "half").touch()
        raise KeyError
    assert {entry.name for entry in path.iterdir()} == {MARKER, "part"} and list(
        tmp_path.iterdir()
    ) == [path]


@pytest.mark.parametrize("name", [MARKER, ""])
def test_only_a_folder_of_the_program_is_replaced(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model"
    (path / "photos").mkdir(parents=True)
    (path / (name or "photo.jpg")).touch()
    stranger = pytest.raises(RunError, match="model' was not made by this program")
    with nullcontext() if name else stranger, atomic_write_dir(path) as temporary:
        (temporary / "new").touch()
    assert {entry.name for entry in path.iterdir()} == (
        {MARKER, "new"} if name else {"photos", "photo.jpg"}
    )
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_added_to_a_folder_of_the_program_stays(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for number in (b"1", b"2"):
        with atomic_write_dir(path) as temporary:
            (temporary / "part").mkdir()
            (temporary / "part" / "weights").write_bytes(number)
        (path / "part" / ".DS_Store").touch()
    (path / "part" / "mine.jpg").write_bytes(b"mine")
    with (
        pytest.raises(RunError, match=r"holds 'part/mine.jpg', which was not made by"),
        atomic_write_dir(path),
    ):
        raise AssertionError("nothing may be written before the refusal")
    with (
        pytest.raises(RunError, match="was not made by"),
        atomic_write_dir(path / "part" / "mine.jpg"),
    ):
        raise AssertionError("a file is not replaced by a folder")
    assert (path / "part" / "mine.jpg").read_bytes() == b"mine" and (
        path / "part" / "weights"
    ).read_bytes() == b"2"


def test_photographs_that_arrive_while_a_folder_is_written_stay(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with (
        pytest.raises(RunError, match="was not made by this program"),
        atomic_write_dir(path),
    ):
        path.mkdir()
        (path / "photo.jpg").touch()
    assert [entry.name for entry in path.iterdir()] == ["photo.jpg"] and list(
        tmp_path.iterdir()
    ) == [path]


def test_a_folder_that_another_process_writes_is_left_to_it(tmp_path: Path) -> None:
    with atomic_write_dir(tmp_path / "model") as one:
        (one / "one").touch()
        with atomic_write_dir(tmp_path / "model") as other:
            (other / "other").touch()
        assert {entry.name for entry in (tmp_path / "model").iterdir()} == {
            MARKER,
            "other",
        }
    assert {entry.name for entry in (tmp_path / "model").iterdir()} == {MARKER, "one"}


KILLED_AT_A_STEP = """
import os, shutil, signal, sys
from pathlib import Path
from toolkit.files import writing as files

steps = 0

def killing(function):
    def step(*arguments, **options):
        global steps
        steps += 1
        if steps == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return step

for module, name in ((os, "mkdir"), (os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "fsync")):
    setattr(module, name, killing(getattr(module, name)))
with files.atomic_write_dir(Path(sys.argv[1])) as folder:
    for name in ("one", "two"):
        (folder / name).write_text("new")
print(steps)
"""


@pytest.mark.slow
def test_a_replacement_that_is_killed_at_any_step_loses_nothing_and_the_next_start_cleans_up(
    tmp_path: Path,
) -> None:
    """Before the second rename the old folder is back, after it the new one is there;
    no other folder is left."""
    command = [sys.executable, "-c", KILLED_AT_A_STEP]
    path, seen, step = tmp_path / "model", [], 0
    while not seen or seen[-1] != "done":
        step += 1
        if path.exists():
            remove(path)
        with atomic_write_dir(path) as folder:
            for name in ("one", "two"):
                (folder / name).write_text("old")
        result = subprocess.run(
            [*command, path, str(step)], capture_output=True, text=True
        )
        assert result.returncode in (0, -signal.SIGKILL), result.stderr
        settle(path)
        assert list(tmp_path.iterdir()) == [path]
        [found] = {(path / name).read_text() for name in ("one", "two")}
        seen.append(found if result.returncode else "done")
    assert seen == sorted(seen, key=["old", "new", "done"].index) and {
        "old",
        "new",
    } < set(seen)


def test_a_folder_aside_counts_as_there(tmp_path: Path) -> None:
    aside = tmp_path / ".model.replaced.tmp"
    aside.mkdir()
    assert folder_at(tmp_path / "model") == aside and fnmatch(
        aside.name, TEMP_FILE_GLOB
    )
    settle_all(tmp_path)
    assert folder_at(tmp_path / "model") == tmp_path / "model" and list(
        tmp_path.iterdir()
    ) == [tmp_path / "model"]


def test_what_is_removed_is_gone_and_a_folder_goes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model" / "part").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    remove(tmp_path / "link")
    assert (tmp_path / "file").exists()
    remove(tmp_path / "file")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("toolkit.files.writing.shutil.rmtree", killed)
        remove(tmp_path / "model")
    [left] = tmp_path.iterdir()
    assert fnmatch(left.name, TEMP_FILE_GLOB)


KILLED_WITHIN_A_FILE = """
import resource, signal, sys
import numpy
from safetensors.numpy import save_file

signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
save_file({"w": numpy.ones(1000)}, sys.argv[1])
"""


def test_what_safetensors_leaves_behind_when_it_is_killed_has_the_known_name(
    tmp_path: Path,
) -> None:
    command = [
        sys.executable,
        "-c",
        KILLED_WITHIN_A_FILE,
        tmp_path / "lora.safetensors",
    ]
    assert subprocess.run(command).returncode == -signal.SIGXFSZ
    [left] = tmp_path.iterdir()
    assert fnmatch(left.name, SAFETENSORS_TEMP_GLOB)


COUNTER = """
import sys
from pathlib import Path
from toolkit.files.writing import folder_lock
file = Path(sys.argv[1]) / "count.txt"
for _ in range(200):
    with folder_lock(file.parent):
        file.write_text(str(int(file.read_text()) + 1))
"""


def test_what_is_read_and_written_in_a_folder_lock_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "count.txt").write_text("0")
    (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(tmp_path)
    places = (tmp_path, tmp_path, tmp_path.parent / f"{tmp_path.name}-link")
    command = [sys.executable, "-c", COUNTER]
    counters = [
        subprocess.Popen([*command, str(place)], env=child_environment())
        for place in places
    ]
    assert [counter.wait(60) for counter in counters] == [0, 0, 0]
    assert (tmp_path / "count.txt").read_text() == "600" and os.listdir(tmp_path) == [
        "count.txt"
    ]


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_folder_lock_is_for_threads_too(
    tmp_path: Path, has_locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_locks:  # Windows
        monkeypatch.setattr(writing, "fcntl", None)
    inside, most = 0, 0

    def enter() -> None:
        nonlocal inside, most
        with folder_lock(tmp_path):
            inside += 1
            most = max(most, inside)
            time.sleep(0.005)
            inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_kill_releases_the_lock_and_another_folder_has_its_own(
    tmp_path: Path,
) -> None:
    (tmp_path / "other").mkdir()
    with (
        folder_lock(tmp_path),
        folder_lock(tmp_path / "other"),
        locked(tmp_path) as has_it,
    ):
        assert has_it is False, "another block is in it"
    code = "import os; from pathlib import Path; from toolkit.files.writing import folder_lock\n"
    code += f"with folder_lock(Path({str(tmp_path)!r})): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], env=child_environment(), check=False)
    with locked(tmp_path) as has_it:
        assert has_it is True


def test_a_folder_that_is_gone_has_no_lock(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(RunError) as refused, folder_lock(gone):
        pass
    assert str(refused.value) == f"{gone}: cannot be written: No such file or directory"
    with folder_lock(tmp_path):  # and nothing is left locked
        pass


def test_what_is_written_as_json_is_read_again_without_secrets_and_whole(
    tmp_path: Path,
) -> None:
    token, path, out = "hf_" + "aB3" * 11 + "z", tmp_path / "a", StringIO()
    name = os.fsdecode(b"caf\xe9.png")  # is no text
    for given, read in (
        ({"name": "ü", "step": 3}, {"name": "ü", "step": 3}),
        ({name: 1}, {name: 1}),
        ({"text": "two\nlines"}, {"text": "two\nlines"}),
        (
            {"a": [f"\n{token}"], token: 1.5},
            {"a": ["\n<redacted>"], "<redacted>": 1.5},
        ),
    ):
        write_json(path, given)
        assert json.loads(path.read_text(encoding="utf-8")) == read
        with (tmp_path / "lines").open("a", encoding="utf-8") as file:
            append_json_line(file, given)
            # it can be read while the file is open
            line = (tmp_path / "lines").read_text(encoding="utf-8").splitlines()[-1]
        assert json.loads(line) == read
    write_json(path, {"name": "ü"})
    assert "ü" in path.read_bytes().decode() and b"\r" not in path.read_bytes()
    for use in (partial(write_json, path), partial(append_json_line, out)):
        with pytest.raises(ValueError, match="JSON"):
            use({"loss": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "ü"}
    assert out.getvalue() == ""
    write_text(path, f"x {token} y")
    assert path.read_text() == "x <redacted> y"


def test_the_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    for length in (0, 65_535, 65_536, 65_537):
        contents = bytes(range(251)) * (length // 251 + 1)
        (tmp_path / "b").write_bytes(contents[:length])
        assert b"".join(read_chunks(tmp_path / "b")) == contents[:length]
        assert (
            sha256_of(str(tmp_path / "b"))
            == hashlib.sha256(contents[:length]).hexdigest()
        )


def test_files_and_folders_can_be_flushed(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x")
    fsync(tmp_path)
    with pytest.raises(FileNotFoundError):
        fsync(tmp_path / "missing")


def test_a_disk_that_cannot_flush_is_a_warning_and_a_file_that_is_lost_an_error(
    new_process, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").touch()
    for number, path in ((errno.EINVAL, tmp_path / "a"), (errno.ENOSPC, tmp_path)):
        monkeypatch.setattr(os, "fsync", lambda _, number=number: fail(number))
        fsync(path)
    assert len(said) == 1 and "a power cut may cost the newest files" in said[0]
    with pytest.raises(OSError, match="No space left"):
        fsync(tmp_path / "a")


def fail(number: int) -> None:
    raise OSError(number, os.strerror(number))


def test_a_file_that_has_the_name_already_leaves_no_temporary_file(
    tmp_path: Path,
) -> None:
    """Renaming one name of a file to another of its names does nothing."""
    (tmp_path / "a").write_text("x")
    for _ in range(2):
        link(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "b").samefile(tmp_path / "a")


def test_a_disk_without_links_gets_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_text("x", encoding="utf-8")
    (tmp_path / "b").write_text("old", encoding="utf-8")
    link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text(encoding="utf-8") == "x"
    assert os.stat(tmp_path / "a").st_ino != os.stat(tmp_path / "b").st_ino


def test_another_process_finds_libraries_where_this_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(("/opt/site", "/opt/more")))
    assert python_path().split(os.pathsep) == [
        str(TOOLKIT_ROOT),
        "/opt/site",
        "/opt/more",
    ]
    monkeypatch.delenv("PYTHONPATH")
    assert python_path() == str(TOOLKIT_ROOT)


@pytest.mark.skipif(os.name == "nt", reason="devices and pipes of POSIX")
def test_a_source_is_a_file_or_a_pipe_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="neither a file nor a pipe"):
        read_source("/dev/zero")
    monkeypatch.setattr("toolkit.files.writing.MOST_SOURCE", 100_000)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for size, fits in ((100_000, True), (100_001, False)):
        (tmp_path / "file").write_bytes(b"a" * size)
        writer = subprocess.Popen(
            ["sh", "-c", f"cat {tmp_path}/file > {pipe}"], stderr=subprocess.DEVNULL
        )
        for place in (pipe, tmp_path / "file"):
            if fits:
                assert len(read_source(place)) == size
            else:
                with pytest.raises(OSError, match="it is larger than 100 kB"):
                    read_source(place)
        writer.wait(30)


def test_what_is_not_a_config_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("jobs").mkdir()
    for name in ("my_char.yml", "jobs/other.yaml"):
        Path(name).write_text("job: extension")
    told = {
        "photos": r"photos: is a folder, not a config file\. For images in it, 'run\.py new NAME photos' writes a job",
        "jobs": r"jobs: is a folder, not a config file\. Give a file: jobs/other\.yaml\.",
        "my_char.yaml": r"my_char\.yaml: no such config\. Did you mean 'my_char\.yml'\?",
        "jobs/othr.yaml": r"Did you mean 'jobs/other\.yaml'\?",
        "jobs/other.yml": r"Did you mean 'jobs/other\.yaml'\?",
        "nothing.yaml": r"nothing\.yaml: no such config\. Working directory",
    }
    for given, message in told.items():
        with pytest.raises(UserError, match=message):
            find_config(given)
    assert find_config("jobs/other.yaml").is_file()
    monkeypatch.chdir("photos")
    for given in ("jobs/other.yaml", "jobs/other", "my_char"):
        with pytest.raises(UserError, match=r"no such config\. It is in") as refused:
            find_config(given)
        (folder,) = re.findall("begin with 'cd (.*?)'", str(refused.value))
        monkeypatch.chdir(folder)
        assert find_config(given).is_file()
        monkeypatch.chdir("photos")


@pytest.mark.parametrize(
    "text", ["x" * 5000, "a/" * 3000, "y" * 300, "a\0b", "loop/x", "\udc80"]
)
def test_a_name_that_no_file_can_have_is_not_found(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"no such config|neither a file nor a command"):
        find_config(text)


# ------------------------------------------------------------ what killed processes
# leave


KILLED = """
import os, sys
from pathlib import Path
from toolkit.files.writing import atomic_write
with atomic_write(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(flush=True)
    sys.stdin.read()
"""


def writer(path: Path) -> subprocess.Popen:
    """Another process in the middle of a write."""
    command = [sys.executable, "-c", KILLED, str(path)]
    process = subprocess.Popen(
        command, cwd=TOOLKIT_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    return process


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


@pytest.fixture
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has written nowhere yet."""
    writing._left_in.cache_clear()
    monkeypatch.setattr(writing, "_warned", set())


@pytest.mark.parametrize("held", [nullcontext, folder_lock])
def test_the_next_write_of_a_file_removes_what_a_killed_one_has_left(
    new_process, tmp_path: Path, held: Callable[..., AbstractContextManager]
) -> None:
    path, other = tmp_path / "a.json", tmp_path / ".b.json.12345678.tmp"
    kill(writer(path))
    other.write_text("of another file")
    assert len(list(tmp_path.glob(TEMP_FILE_GLOB))) == 2
    with held(tmp_path):
        write_text(path, "whole")
    assert sorted(tmp_path.iterdir()) == [other, path]


def test_who_has_the_lock_of_a_folder_removes_nothing_of_another_thread(
    new_process, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    with (
        folder_lock(tmp_path),
        ThreadPoolExecutor(1) as other,
        atomic_write(path) as ours,
    ):
        ours.write_text("ours")
        writing._left_in.cache_clear()
        other.submit(write_text, path, "theirs").result()
        assert path.read_text() == "theirs" and ours.exists()
    assert path.read_text() == "ours"


def test_a_process_that_is_killed_within_safetensors_leaves_nothing_for_long(
    new_process, tmp_path: Path
) -> None:
    """safetensors writes under a random name first, in a folder of our own."""
    path, tensors = tmp_path / "a.safetensors", {"w": torch.zeros(3)}

    def save() -> None:
        os.replace = lambda *_: os._exit(9)
        write_safetensors_verified(path, {"w": torch.ones(3)}, None)

    assert killed(save)
    assert len(list(tmp_path.glob(TEMP_FILE_GLOB))) == 2
    write_safetensors_verified(path, tensors, None)
    assert (
        list(tmp_path.iterdir()) == [path]
        and stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask()
    )


def umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def test_a_write_that_goes_on_elsewhere_is_let_be(new_process, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    process = writer(path)
    [theirs] = tmp_path.glob(TEMP_FILE_GLOB)
    write_text(path, "ours")
    assert theirs.read_text() == "half" and path.read_text() == "ours"
    process.communicate()
    assert (
        process.returncode == 0 and path.read_text() == "half" and not theirs.exists()
    )


def test_names_that_look_alike_are_let_be(new_process, tmp_path: Path) -> None:
    for name in (
        ".a.json.1234567.tmp",
        ".a.json.1234567g.tmp",
        "a.json.12345678.tmp",
        ".aXjson.12345678.tmp",
    ):
        (tmp_path / name).touch()
    write_text(tmp_path / "a.json", "")
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("held", [nullcontext, folder_lock])
def test_without_locks_nothing_is_removed(
    new_process,
    tmp_path: Path,
    monkeypatch,
    held: Callable[..., AbstractContextManager],
) -> None:
    kill(writer(tmp_path / "a.json"))

    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(writing.fcntl, "flock", refuse)
    with held(tmp_path):
        write_text(tmp_path / "a.json", "whole")
    assert len(list(tmp_path.iterdir())) == 2


def test_what_serves_tidiness_alone_warns_once_and_names_no_temporary_file(
    new_process, said, tmp_path: Path
) -> None:
    path = tmp_path / ".a.12345678.tmp" / "b.safetensors"
    for number in (1, 5, 1):
        with only_tidy(path, f"modes stay {number}"):
            raise OSError(number, os.strerror(number))
    assert said == [
        f"{tmp_path}: Operation not permitted: modes stay 1",
        f"{tmp_path}: Input/output error: modes stay 5",
    ]


def test_free_space_that_the_disk_does_not_say_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert writing.free_space(tmp_path / "new") < writing.UNKNOWN_SPACE

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(writing.shutil, "disk_usage", refuse)
    free = writing.free_space(tmp_path)
    assert free == writing.UNKNOWN_SPACE
    assert writing.readable_size(free) == "an unknown amount"
    assert not writing.lacks_room(10**15, tmp_path)
