"""The verbs of `runs`, `datasets` and `jobs`, killed before each call that changes
something, on a full disk, and with something in the way: all of it is done, or nothing,
or the same verb does the rest. What a person wrote stays as it is."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from extensions.tools.ui import shelf, steps
from extensions.tools.ui.shelf import Kind, Shelf
from extensions.tools.ui.steps import Step
from tests.faults.calls import Call, Disk, answering
from tests.processes import killed
from toolkit.errors import RunError, UserError
from toolkit.files import writing

SECRET = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"
HOOK = "https://alerts:planted77@example.org/hook"

CHANGES = (
    *("replace", "rename", "mkdir", "rmdir", "unlink", "remove"),
    *("chmod", "utime", "symlink", "fsync"),
)
"""Calls that change something, and the flushes between them."""

VERBS: tuple[tuple[str, Kind, tuple[str, ...]], ...] = (
    ("rename", "runs", ("maya", "state")),
    ("rename", "runs", ("maya", "maya_raw")),
    ("rename", "datasets", ("maya", "nova")),
    ("rename", "jobs", ("other", "third")),
    ("clone", "runs", ("maya", "nova")),
    ("clone", "datasets", ("maya", "nova")),
    ("clone", "jobs", ("maya", "nova")),
    ("delete", "runs", ("maya",)),
    ("delete", "datasets", ("maya",)),
    ("delete", "jobs", ("maya",)),
    ("restore", "runs", ("gone",)),
    ("restore", "datasets", ("gone",)),
    ("restore", "jobs", ("gone",)),
    ("longer", "runs", ("maya", "9")),
)

each_verb = pytest.mark.parametrize(
    ("verb", "kind", "words"), VERBS, ids=[f"{v} {k} {w[-1]}" for v, k, w in VERBS]
)


def job_of(name: str, **keys: Any) -> str:
    section = {"type": "sd_trainer", "datasets": [{"folder_path": "datasets/maya"}]}
    section |= {"train": {"steps": 4}, "hf_token": SECRET}
    section |= {"callbacks": [{"type": "webhook", "url": HOOK}], **keys}
    job = {"job": "extension", "config": {"name": name, "process": [section]}}
    return f"# mine\n{json.dumps(job, indent=1)}\n"


@pytest.fixture
def worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Makes the same folders again and again, each time in a folder of its own, which
    is then the working directory."""
    moments = count()
    monkeypatch.setattr(shelf, "moment_name", lambda: "now")
    monkeypatch.setattr(shelf.run_files, "utc_now", lambda: "now")

    def fresh() -> Path:
        world = tmp_path / str(next(moments))
        for folder in (
            "output/maya/samples",
            "output/.ui/lint",
            "output/.ui/undo/maya",
            "datasets/maya/deep",
            "config",
        ):
            (world / folder).mkdir(parents=True)
        monkeypatch.chdir(world)
        writing._left_in.cache_clear()
        run = Path("output/maya")
        saved = job_of("maya").replace(SECRET, "${T}").replace(HOOK, "${H}")
        (run / "config.yaml").write_text(saved)
        origin = {"file": f"{world}/config/maya.yaml", "cwd": str(world)}
        state = {"name": "maya", "step": 4, "steps": 4, "status": "finished"}
        (run / "run.json").write_text(json.dumps(state | {"origin": origin}))
        (run / "run.lock").touch()
        (run / "best.json").write_text('{"recommended": "maya_000000002.safetensors"}')
        for name in ("maya", "maya_000000002", "maya_best", "mine"):
            (run / f"{name}.safetensors").write_text(name)
        (run / "samples" / "000000002_0.png").write_text("picture")
        Path("output/.ui/lint/maya.json").write_text("{}")
        Path("output/.ui/undo/maya/1.json").write_text("{}")
        for name in ("1.png", "1.txt", "deep/2.png", "deep/2.txt"):
            (Path("datasets/maya") / name).write_text(name)
        Path("datasets/maya/link").symlink_to("../elsewhere")
        Path("config/maya.yaml").write_text(job_of("maya"))
        Path("config/maya.yaml").chmod(0o600)
        lora = {"pretrained_lora_path": "output/maya/maya_best.safetensors"}
        places = {"control_path": ["datasets/maya/deep", "elsewhere"]}
        Path("config/other.yaml").write_text(job_of("other", network=lora, **places))
        return world

    return fresh


def make_gone(own: Shelf, kind: Kind) -> None:
    """Something in the trash."""
    gone = own.home(kind) / ("gone.yaml" if kind == "jobs" else "gone")
    if kind == "jobs":
        gone.write_text(job_of("gone"))
    else:
        gone.mkdir()
        (gone / "run.json").write_text('{"name": "gone", "status": "finished"}')
    shelf.delete(own, kind, "gone")


def ready(
    fresh: Callable[[], Path], verb: str, kind: Kind, words: tuple[str, ...]
) -> Callable[[], object]:
    """The verb in new folders, not yet done."""
    fresh()
    own = Shelf(Path("output"), Path("datasets"), Path("config"))
    if verb == "restore":
        make_gone(own, kind)
    if verb == "longer":
        return lambda: shelf.longer(own, *words)
    return lambda: getattr(shelf, verb)(own, kind, *words)


def tree() -> dict[str, tuple[int, str]]:
    """Each file and link, its rights, and what is in it."""
    found = {}
    here = f"{Path.cwd()}"
    for path in sorted(Path().rglob("*")):
        rights = stat.S_IMODE(path.lstat().st_mode)
        if path.is_symlink():
            found[str(path)] = rights, f"-> {path.readlink()}"
        elif path.is_file():
            found[str(path)] = rights, path.read_text().replace(here, "")
    # of a kill: until the next verb, and until the next deletion
    mere = [name for name in found if re.search(r"run\.lock$|\.trash/now\.json$", name)]
    return {name: said for name, said in found.items() if name not in mere}


class Killing(Disk):
    """Ends the process before one of the calls that change something."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def meet(self, name: str, place: Any) -> None:
        self.at -= name in CHANGES
        if self.at == 0:
            os._exit(9)


@pytest.mark.slow
@each_verb
def test_a_verb_that_is_killed_is_whole_or_done_by_the_same_verb(
    worlds: Callable[[], Path], verb: str, kind: Kind, words: tuple[str, ...]
) -> None:
    work = ready(worlds, verb, kind, words)
    work()
    whole = tree()
    assert "<redacted>" not in str(whole)
    for at in count(1):
        work = ready(worlds, verb, kind, words)

        def cut_off(at: int = at, work: Callable[[], object] = work) -> None:
            with answering(Killing(at)):
                work()

        if not killed(cut_off):
            break
        half = tree()
        assert "<redacted>" not in str(half)
        nova = {name for name in half if name.startswith("datasets/nova/")}
        assert len(nova) in (0, 6), f"half a dataset after call {at}"
        try:
            work()
        except UserError:
            assert half == whole, f"call {at}"
        assert tree() == whole, f"call {at}"
    assert at > 2


@each_verb
def test_a_full_disk_changes_nothing(
    worlds: Callable[[], Path], verb: str, kind: Kind, words: tuple[str, ...]
) -> None:
    work, disk = ready(worlds, verb, kind, words), Disk()
    with answering(disk):
        work()
    whole = tree()
    fatal = 0
    for call in (call for call in disk.calls if call.name in CHANGES):
        work = ready(worlds, verb, kind, words)
        before = tree()
        full = Disk(Call(call.name, call.of, call.number), errno.ENOSPC)
        try:
            with answering(full):
                work()
        except RunError as error:
            fatal += 1
            assert os.strerror(errno.ENOSPC) in str(error)
            assert tree() in (before, whole), call
        else:
            assert tree() == whole, call
        if tree() != whole:
            work()
            assert tree() == whole, call
    assert fatal


@each_verb
def test_nothing_is_replaced(
    worlds: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    kind: Kind,
    words: tuple[str, ...],
) -> None:
    listed: list[list[Step]] = []

    def do(todo: Iterable[Step]) -> None:
        listed.append([*todo])
        steps.do(listed[-1])

    monkeypatch.setattr(shelf, "do", do)
    ready(worlds, verb, kind, words)()
    targets = [step.target for step in listed[-1] if step.target != step.source]
    assert targets or verb == "longer"
    for target in targets:
        work = ready(worlds, verb, kind, words)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("mine")
        before = tree()
        if ".ui" in target.parts:  # of a dataset that was deleted
            work()
            assert "mine" in [said for _, said in tree().values()]
            continue
        with pytest.raises(UserError, match=rf"{target}: is (?:in the way|there)"):
            work()
        assert tree() == before


@pytest.mark.parametrize("kind", ["runs", "datasets", "jobs"])
def test_the_name_of_the_shared_cache_is_taken(
    worlds: Callable[[], Path], kind: Kind
) -> None:
    for verb in ("rename", "clone"):
        work = ready(worlds, verb, kind, ("maya", "_cache"))
        before = tree()
        with pytest.raises(
            UserError, match="'_cache' is the folder of the shared cache"
        ):
            work()
        assert tree() == before
