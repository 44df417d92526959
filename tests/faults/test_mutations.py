"""Hundreds of small damages to what a user brings: it works, or an error names the
place; no original is changed."""

from __future__ import annotations

import copy
import json
import os
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from jobs.dry_run import plan_job
from tests.conftest import ROOT
from tests.faults.conftest import draw_pictures
from tests.faults.test_inputs import NO_PATHS
from tests.processes import alarm
from tests.toolkit.data.conftest import FakeModel, make_dataset
from tests.toolkit.train.states import make_run, saved
from toolkit.config import load_job
from toolkit.config.reading.tool import ToolConfig, load_tool, tool_parser
from toolkit.config.sections.train import TrainConfig
from toolkit.data.batches.latent_cache import CachePair, encode_items
from toolkit.data.scan.items import scan_items
from toolkit.errors import DataErrors, RunError, UserError
from toolkit.extension import ExtensionTable, discover
from toolkit.files.tensor_cache import TensorCache
from toolkit.train.checkpoint_state import load_state
from toolkit.train.checkpoint_store import checkpoint_dir
from toolkit.train.resumption import find_checkpoint

pytestmark = pytest.mark.slow

CASES = 100

SEED, TIMES = (
    int(os.environ.get("MUTATION_SEED", "1")),
    int(os.environ.get("MUTATION_TIMES", "1")),
)
"""Another seed, and so many times the cases: `MUTATION_SEED=7 MUTATION_TIMES=5 pytest
-m slow ...`."""


def mutated(raw: bytes, draw: Random) -> bytes:
    """Bytes changed, cut out, put in, repeated, or the end cut off."""
    contents = bytearray(raw)
    for _ in range(draw.choice([1, 1, 1, 2, 8])):
        place = draw.randrange(len(contents) + 1)
        length = draw.choice([1, 1, 2, 7, 64])
        match draw.randrange(6):
            case 0 if contents:
                contents[place % len(contents)] ^= 1 << draw.randrange(8)
            case 1:
                contents[place : place + length] = draw.randbytes(length)
            case 2:
                del contents[place : place + length]
            case 3:
                contents[place:place] = draw.randbytes(length)
            case 4:
                contents[place:place] = contents[place : place + length]
            case 5:
                del contents[place:]
    return bytes(contents)


# ------------------------------------------------------------ jobs

VALUES = [
    None, True, False, 0, -1, 1, 2, 3.5, 1e308, -1e-9, float("inf"), float("nan"), 2**70, "", " ", "auto", "never", "x",
    "0", "1e3", "none", "ünï", "a/b", "../x", "${HOME}", "${", "[name]", "x" * 200, [], {}, [None], [[]],
    ["a", 1], {"a": 1}, {"": None}, {"a": {"b": [{}]}}, [64, 64], [-1], "2024-01-01",
]  # fmt: skip


def places(value: object, path: tuple = ()) -> list[tuple]:
    found = [path] if path else []
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return found + [
        place for key, child in items for place in places(child, (*path, key))
    ]


def mutate_job(job: dict, names: list[str], draw: Random) -> None:
    """One to three changes: a value, a key, a missing or doubled part."""
    for _ in range(draw.choice([1, 1, 2, 3])):
        if not (choices := places(job)):
            return  # nothing is left to change
        path = draw.choice(choices)
        parent = job
        for key in path[:-1]:
            parent = parent[key]
        key = path[-1]
        match draw.randrange(5):
            case 0 | 1:
                parent[key] = copy.deepcopy(draw.choice(VALUES))
            case 2:
                del parent[key]
            case 3 if isinstance(parent, dict):
                parent[draw.choice([*names, f"{key}x", ""])] = copy.deepcopy(
                    draw.choice([*VALUES, parent[key]])
                )
            case _:
                parent[key] = (
                    [parent[key]] if draw.random() < 0.5 else {"a": parent[key]}
                )


def test_mutated_jobs_load_or_are_refused_by_place(
    tmp_path: Path, small_section: dict
) -> None:
    draw, extensions = Random(1), discover()
    section = {
        **small_section,
        "trigger_word": "x",
        "logging": {"log_every": 1},
        "resume": "auto",
    }
    valid = {
        "job": "extension",
        "config": {"name": "job", "process": [section]},
        "meta": {"version": "1"},
    }
    names = [str(path[-1]) for path in places(valid) if isinstance(path[-1], str)]
    path, outcomes = tmp_path / "job.yaml", [0, 0]
    for case in range(400 * TIMES):
        job = copy.deepcopy(valid)
        text = json.dumps(job, indent=1).encode()
        if case % 5 == 4:
            text = mutated(text, draw)
        else:
            mutate_job(job, names, draw)
            text = json.dumps(job).encode()
        path.write_bytes(text)
        try:
            config = load_job(path, extensions.find_config)
            assert config.name
            outcomes[0] += 1
        except UserError as error:
            assert str(path) in str(error), (case, text, error)
            assert "Traceback" not in str(error), (case, text, error)
            outcomes[1] += 1
        except Exception as error:
            raise AssertionError(f"case {case}: {error!r} for {text!r}") from error
        assert path.read_bytes() == text, case
    assert min(outcomes) > 16, f"too one-sided: {outcomes}"


EXAMPLES = sorted(
    {
        re.sub(r"_\d+gb(_max)?$", "", path.stem): path
        for path in sorted((ROOT / "config").rglob("*.yaml"))
        if "tiny_mascots" not in path.parts
    }.values()
)
"""Of those for several cards the last: they have the same keys."""

TOOLS: dict[str, dict[str, object]] = {
    "ara": {"model": {"name_or_path": "tiny"}, "output": "ara.safetensors"},
    "best": {"run": "run"},
    "cache": {
        "model": {"name_or_path": "tiny"},
        "datasets": [{"folder_path": "photos"}],
    },
    "caption": {"folder": "photos", "model": "captioner"},
    "convert": {"lora": "lora.safetensors", "output": "converted.safetensors"},
    "diagrams": {"run": "run"},
    "extract": {"lora": "lora.safetensors", "output": "extracted.safetensors"},
    "generate": {
        "model": {"name_or_path": "tiny"},
        "prompt": ["a photo"],
        "lora": ["lora.safetensors"],
    },
    "grid": {
        "model": {"name_or_path": "tiny"},
        "prompt": ["a photo"],
        "lora": ["lora.safetensors"],
    },
    "inspect": {"lora": ["lora.safetensors"]},
    "lint": {"path": "photos"},
    "merge": {"lora": ["lora.safetensors"], "output": "merged.safetensors"},
    "new": {"job_name": "zuzu", "folder": "photos"},
    "post_hoc_ema": {"lora": ["lora.safetensors"], "output": "averaged.safetensors"},
    "publish": {"path": "run", "repo": "me/it"},
    "report": {"run": "run"},
    "resize": {"lora": "lora.safetensors", "output": "resized.safetensors", "rank": 2},
}
"""Tool -> keys of a section; not each is valid: what is refused at the start is a case
as well."""


def refused_or_done(what: object, action: Callable[[], object]) -> bool:
    """Whether the action came to its end; an error has to be the user's or the run's,
    of a few lines."""
    try:
        with alarm(60):
            action()
    except (UserError, RunError) as error:
        assert "Traceback" not in str(error), (what, error)
        return False
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error
    return True


@pytest.fixture
def workplace(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working directory with what the sections name: photographs, a model, a file,
    the examples."""
    draw_pictures(tmp_path / "photos", "a", "b")
    (tmp_path / "tiny").symlink_to(tiny_model)
    (tmp_path / "config").symlink_to(ROOT / "config")
    save_file(
        {"diffusion_model.x.lora_A.weight": torch.zeros(2, 4)},
        tmp_path / "lora.safetensors",
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _plan(path: Path, extensions: ExtensionTable) -> None:
    plan_job(load_job(path, extensions.find_config)).render()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_mutated_examples_are_planned_or_refused(
    workplace: Path, example: Path
) -> None:
    _mutate_and_plan(workplace, yaml.safe_load(example.read_text()), example.stem, 10)


@pytest.mark.parametrize("tool", TOOLS)
def test_mutated_sections_of_tools_are_planned_or_refused(
    workplace: Path, tool: str
) -> None:
    _mutate_and_plan(
        workplace,
        {
            "job": "extension",
            "config": {"name": tool, "process": [{"type": tool, **TOOLS[tool]}]},
        },
        tool,
        10,
    )


def _mutate_and_plan(workplace: Path, valid: dict, name: str, cases: int) -> None:
    draw, extensions = Random(f"{name} {SEED}"), discover()
    names = [str(place[-1]) for place in places(valid) if isinstance(place[-1], str)]
    path = workplace / "job.json"
    before = sorted(found for found in workplace.rglob("*") if found != path)
    for case in range(cases * TIMES):
        job = copy.deepcopy(valid)
        mutate_job(job, names, draw)
        path.write_text(json.dumps(job))
        refused_or_done((case, job), partial(_plan, path, extensions))
    assert sorted(found for found in workplace.rglob("*") if found != path) == before, (
        "a plan writes nothing"
    )


@pytest.mark.parametrize("tool", TOOLS)
def test_mutated_flags_of_tools_are_read_or_refused(workplace: Path, tool: str) -> None:
    draw, model = Random(f"flags of {tool} {SEED}"), discover().find_command(tool)
    assert model is not None and issubclass(model, ToolConfig)
    flags = [
        flag
        for flag in tool_parser(tool, model)._option_string_actions
        if flag.startswith("--") and flag != "--help"
    ]
    (workplace / "loop").symlink_to("loop")
    values = [str(value) for value in VALUES] + [
        *NO_PATHS,
        "\udc80x",
        "photos",
        "tiny",
        "lora.safetensors",
        "run",
        "job.json",
        "/dev/null",
    ]
    for case in range(8 * TIMES):
        argv = [
            draw.choice([*flags, *values])
            for _ in range(draw.choice([0, 1, 2, 2, 3, 4, 6]))
        ]
        refused_or_done((case, tool, argv), partial(load_tool, tool, model, argv))


# ------------------------------------------------------------ datasets


def encoded(folder: Path) -> None:
    """What a run does with a dataset before it trains."""
    datasets = (make_dataset(folder, resolution=(64,)),)
    section = SimpleNamespace(
        datasets=datasets,
        streamed=None,
        reads_captions=True,
        trigger_word="x",
        validation=None,
        train=TrainConfig(),
    )
    _, items = scan_items(section, 16)
    memory = TensorCache(None)
    encode_items(items, FakeModel(), lambda _: CachePair(memory, memory), torch.float32)


def damage_one_by_one(folder: Path, path: Path, draw: Random, cases: int) -> list[int]:
    """Counts of what worked and what was refused. Every error names the damaged file,
    which stays as it is."""
    good, outcomes = path.read_bytes(), [0, 0]
    for case in range(cases):
        bad = mutated(good, draw)
        path.write_bytes(bad)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                encoded(folder)
            outcomes[0] += 1
        except (DataErrors, RunError) as error:
            assert path.stem in str(error), (case, bad, error)
            outcomes[1] += 1
        except Exception as error:
            raise AssertionError(
                f"{path.name}, case {case}: {error!r} for {bad!r}"
            ) from error
        assert path.read_bytes() == bad, "a file of the user was changed"
    path.write_bytes(good)
    return outcomes


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
def test_mutated_pictures_are_read_or_named(tmp_path: Path, suffix: str) -> None:
    draw_pictures(tmp_path, "other", "broken")
    if suffix != "png":
        with Image.open(tmp_path / "broken.png") as picture:
            picture.resize((24, 18)).save(
                tmp_path / f"broken.{suffix}", exif=Image.Exif()
            )
        (tmp_path / "broken.png").unlink()
    worked, refused = damage_one_by_one(
        tmp_path, tmp_path / f"broken.{suffix}", Random(suffix), CASES // 5
    )
    assert refused, "no damage was noticed"
    assert worked + refused == CASES // 5


def test_mutated_captions_are_read_or_named(tmp_path: Path) -> None:
    draw_pictures(tmp_path, "other", "broken")
    (tmp_path / "broken.txt").write_text(
        "a photo of ünï, \U0001f98a and שלום", encoding="utf-8"
    )
    worked, refused = damage_one_by_one(
        tmp_path, tmp_path / "broken.txt", Random(3), CASES
    )
    assert min(worked, refused) > 4


# ------------------------------------------------------------ what the program wrote
# itself


def test_mutated_cache_entries_are_whole_or_missing(
    said: list[str], tmp_path: Path
) -> None:
    draw = Random(4)
    cache = TensorCache(tmp_path)
    good = {
        "tensor": torch.arange(12.0).reshape(3, 4),
        "other": torch.ones(2, dtype=torch.bfloat16),
    }
    cache.put("ab12", good)
    [path] = tmp_path.rglob("*.safetensors")
    raw, whole = path.read_bytes(), 0
    for case in range(CASES):
        bad = mutated(raw, draw)
        path.write_bytes(bad)
        said.clear()
        try:
            got = cache.get("ab12")
        except Exception as error:
            raise AssertionError(f"case {case}: {error!r} for {bad!r}") from error
        if got is None:
            assert len(said) == 1 and str(path) in said[0]
        else:  # the damage hit nothing that counts, such as the padding of the header
            whole += 1
            assert got.keys() == good.keys() and all(
                torch.equal(got[name], good[name]) for name in good
            ), (case, bad)
        assert path.read_bytes() == bad
    assert whole < CASES // 5


def test_mutated_states_are_passed_over_or_hold_the_same(
    said: list[str], tmp_path: Path
) -> None:
    draw = Random(5)
    older, newer = saved(tmp_path, 2, 4)
    whole = make_run(tmp_path)
    load_state(newer, whole)
    files = sorted(newer.iterdir())
    for case in range(CASES):
        path = draw.choice(files)
        raw = path.read_bytes()
        bad = mutated(raw, draw)
        path.write_bytes(bad)
        said.clear()
        try:
            chosen, _ = find_checkpoint(tmp_path, "auto", False)
            run = make_run(tmp_path, fill=1)
            load_state(chosen, run)
        except (RunError, UserError) as error:
            assert str(newer) in str(error), (case, path.name, error)
        except Exception as error:
            raise AssertionError(
                f"case {case}: {error!r} in {path.name} for {bad!r}"
            ) from error
        else:
            assert chosen in (older, newer)
            if chosen == older:
                assert len(said) == 1 and str(newer) in said[0]
            else:
                for name, weight in run.roles["network"].parameters.items():
                    assert torch.equal(
                        weight, whole.roles["network"].parameters[name]
                    ), (case, path.name)
        assert path.read_bytes() == bad
        path.write_bytes(raw)
    assert sorted(checkpoint_dir(tmp_path).iterdir()) == [older, newer]
