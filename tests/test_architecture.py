"""The shape of the program (docs/architecture.md): which way imports point, names that
lead somewhere, tests that are found by name. Reads the source of every tracked file."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from benchmarks.source_figures import imported, sources
from tests.optimizer_names import INSTALLED
from tests.processes import output_of, python
from toolkit.optim.optimizer_args import EXTRAS, OPTIMIZERS

ROOT = Path(__file__).resolve().parents[1]

OWN = {"launch", "run", "jobs", "extensions", "toolkit", "docs", "tests"}

PROGRAMS = ("atelier.py", "launch.py", "run.py")
"""The files beside the folders."""

MAY_IMPORT = {
    "atelier": {"run", "toolkit"},
    "launch": {"toolkit"},
    "run": {"jobs", "toolkit"},
    "docs": {"docs", "extensions", "toolkit"},
    "jobs": {"jobs", "toolkit"},
    "extensions": {"jobs", "toolkit"},
    "toolkit": {"toolkit"},
}
"""Top level: what the code of each folder may import of ours. An extension may also
import itself."""

LIBRARY_LEVEL = {"networks", "models", "data", "memory"}
"""Rooms of one level: what one needs of another is passed in by whoever wires them."""

GROUND = {"", "system", "files"}
"""What every room stands on: the machine, what is written, and the modules that lie in
toolkit/ itself."""

BELOW_CONFIG = {"contracts", "flow", "optim"}
"""The types and interfaces that rooms agree on, and the rooms that know no job: a
section may read their names."""

ROOMS_MAY_IMPORT = {
    "": {"files"},
    "system": {""},
    "files": {"", "system"},
    "contracts": {"", "system"},
    "flow": set(),
    "optim": {"contracts", *GROUND},
    "config": {*BELOW_CONFIG, *GROUND},
    **{room: {"config", "contracts", *GROUND} for room in LIBRARY_LEVEL},
    "train": {"config", *BELOW_CONFIG, *GROUND, *LIBRARY_LEVEL},
    "plan": {"config", "train", *BELOW_CONFIG, *GROUND, *LIBRARY_LEVEL},
}
"""Inside the toolkit, by folder, from the ground up; "" is the modules that lie in
toolkit/ itself. A room may import itself."""

FLOORS = {
    "config": ("reading", "sections"),
    "data": ("pixels", "scan", "streams", "batches"),
}
"""Folders inside a room, from the ground up: each may import itself and those before
it."""

FLOW_LIBRARIES = {"torch", "numpy"}
"""All that the mathematics may import besides the standard library."""

OF_WHOLE_JOBS = "tests/faults"
"""The one folder of tests that mirrors no room: whole jobs, killed, damaged and on odd
machines."""


def tracked(*folders: str) -> list[str]:
    """Tracked Python files under these folders, or all; POSIX paths from the root."""
    listed = output_of("git", "ls-files", *folders).splitlines()
    return [name for name in listed if name.endswith(".py") and (ROOT / name).is_file()]


def source(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


parse = cache(ast.parse)


@cache
def nodes_of(text: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(parse(text)))


def module_of(name: str) -> str:
    """toolkit/data/__init__.py -> toolkit.data"""
    return name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


@cache
def imports(name: str, text: str) -> tuple[str, ...]:
    """Everything a file imports, wherever in it: absolute dotted names, of `from a
    import b` a.b."""
    package, found = name.split("/")[:-1], list[str]()
    for node in nodes_of(text):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module or "").split(".")]
            found += [
                ".".join([*filter(None, module), alias.name]) for alias in node.names
            ]
    return tuple(found)


def room_of(module: str) -> str:
    """The folder of toolkit/ a module lies in, "" for toolkit/ itself."""
    part = module.split(".")[1] if "." in module else ""
    return part if (ROOT / "toolkit" / part).is_dir() else ""


def points_up(here: str, target: str) -> bool:
    """Whether an import inside a room goes from one of its folders to one above it."""
    floors = FLOORS.get(room_of(here), ())
    own, to = (
        next((part for part in module.split(".")[2:3] if part in floors), None)
        for module in (here, target)
    )
    return own is not None and to is not None and floors.index(to) > floors.index(own)


def extension_of(module: str) -> list[str]:
    """extensions.sd_trainer, extensions.tools.grid: what imports nothing of another."""
    parts = module.split(".")
    return parts[: 3 if parts[1:2] == ["tools"] else 2]


def wrong_arrows(name: str, text: str) -> list[str]:
    """The imports of a file that point the wrong way."""
    here = module_of(name)
    top = here.split(".")[0]
    wrong = []
    for target in imports(name, text):
        to = target.split(".")[0]
        if to not in OWN:
            outside = (
                top == "toolkit"
                and room_of(here) == "flow"
                and to not in FLOW_LIBRARIES | sys.stdlib_module_names
            )
            allowed = not outside
        elif top == to == "extensions":
            allowed = extension_of(here) == extension_of(target)
            allowed |= here.startswith("extensions.tools.") and target.startswith(
                "extensions.tools.shared"
            )
        elif top == to == "toolkit":
            allowed = room_of(target) in ROOMS_MAY_IMPORT[room_of(here)] | {
                room_of(here)
            }
            allowed &= room_of(target) != room_of(here) or not points_up(here, target)
        else:
            allowed = to in MAY_IMPORT[top]
        if not allowed:
            wrong.append(f"{name} imports {target}")
    return wrong


# ------------------------------------------------------------ foreign files


def unpickling(text: str) -> list[str]:
    """The calls that would run code of a file: weights without `use_safetensors`,
    pickles, code of a model folder."""
    found = []
    for node in nodes_of(text):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr not in ("from_pretrained", "load") and not any(
            keyword.arg == "trust_remote_code" for keyword in node.keywords
        ):
            continue
        given = {
            keyword.arg or ast.unparse(keyword.value): ast.unparse(keyword.value)
            for keyword in node.keywords
        }
        receiver = ast.unparse(node.func.value)
        weights = node.func.attr == "from_pretrained" and not re.search(
            r"(Tokenizer(Fast)?|Pil|Config)$", receiver
        )
        safe = given.get("use_safetensors") == "True" or "STRICTLY" in given
        asks = receiver.rpartition(".")[2].startswith("Auto") and "NO_CODE" not in given
        loads = (
            f"{receiver}.{node.func.attr}" == "torch.load"
            and given.get("weights_only") != "True"
        )
        if (
            (weights and not safe)
            or loads
            or (asks and node.func.attr == "from_pretrained")
            or given.get("trust_remote_code", "False") != "False"
        ):
            found.append(ast.unparse(node))
    return found


def test_no_code_of_a_foreign_file_is_run() -> None:
    from toolkit.models.loading import NO_CODE, STRICTLY

    assert STRICTLY["use_safetensors"] is True
    assert NO_CODE["trust_remote_code"] is False
    for name in tracked(*MAY_IMPORT, *PROGRAMS):
        assert unpickling(source(name)) == [], name
    bad = [
        "X.from_pretrained(a)",
        "torch.load(f)",
        "AutoTokenizer.from_pretrained(a, trust_remote_code=yes)",
        "transformers.AutoConfig.from_pretrained(a)",
    ]
    assert unpickling("\n".join(bad)) == bad


# ------------------------------------------------------------ imports


def test_imports_point_one_way() -> None:
    assert [
        arrow
        for name in tracked(*MAY_IMPORT, *PROGRAMS)
        for arrow in wrong_arrows(name, source(name))
    ] == []


POINTS_BACK = [
    ("toolkit/data/x.py", "from toolkit.models import hub"),
    ("toolkit/networks/x.py", "import toolkit.optim.ema"),
    ("toolkit/models/qwen_image/x.py", "from toolkit.train.run import Run"),
    ("toolkit/config/x.py", "from toolkit.plan.run_plan import RunPlan"),
    ("toolkit/config/x.py", "from toolkit.networks.targets import matching"),
    (
        "toolkit/config/reading/x.py",
        "from toolkit.config.sections.train import TrainConfig",
    ),
    ("toolkit/data/pixels/x.py", "from toolkit.data.scan import folder"),
    (
        "toolkit/data/streams/x.py",
        "from toolkit.data.batches.dataloader import Batches",
    ),
    ("toolkit/contracts/x.py", "from toolkit.data.pixels.images import read_image"),
    ("toolkit/optim/x.py", "from toolkit.config.sections.train import TrainConfig"),
    ("toolkit/x.py", "from toolkit import data"),
    ("toolkit/train/x.py", "from jobs import job"),
    ("toolkit/train/x.py", "import extensions"),
    ("toolkit/flow/x.py", "from toolkit.contracts.data import Batch"),
    ("toolkit/flow/x.py", "import diffusers"),
    ("toolkit/flow/x.py", "def f():\n    from ..system.seeding import key"),
    ("jobs/x.py", "import run"),
    ("extensions/cache/x.py", "from extensions.sd_trainer.rules import findings"),
    ("extensions/cache/x.py", "from ..sd_trainer import rules"),
    ("extensions/cache/x.py", "from tests.conftest import ROOT"),
    ("extensions/tools/cache/x.py", "from extensions.tools.report import page"),
    ("extensions/tools/shared/x.py", "from ..report import page"),
]
"""File, and an import that it may not have."""


def test_an_arrow_that_points_back_is_seen() -> None:
    for name, line in POINTS_BACK:
        assert len(wrong_arrows(name, line)) == 1, (name, line)


def test_no_files_import_each_other_in_a_circle() -> None:
    """Wherever the imports stand: those for the type checker count as well."""
    files = sources(ROOT, ["toolkit", "jobs", "extensions", "run.py"])
    graph = {name: imported(name, parse(text), files) for name, text in files.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_every_folder_of_the_toolkit_is_a_room_with_a_place() -> None:
    rooms = {path.parent.name for path in (ROOT / "toolkit").glob("*/__init__.py")}
    assert rooms == set(ROOMS_MAY_IMPORT) - {""}


def read_before_a_run() -> set[str]:
    """The files of extensions that a dry run may import: from __init__.py and config.py
    on, but for the process."""
    files = {name for name in tracked("extensions") if not name.endswith("process.py")}
    by_module = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name
        for name in files
    }
    found: set[str] = set()
    waiting = [name for name in files if name.endswith(("/__init__.py", "config.py"))]
    while waiting:
        name = waiting.pop()
        found.add(name)
        targets = [f"{target}." for target in imports(name, source(name))]
        of_ours = {
            file
            for module, file in by_module.items()
            if any(to.startswith(f"{module}.") for to in targets)
        }
        waiting += of_ours - found
    return found


def test_what_planning_imports_loads_no_torch() -> None:
    light = {
        *tracked("toolkit/contracts", "toolkit/config", "jobs"),
        "run.py",
        "toolkit/data/scan/items.py",
        *read_before_a_run(),
    }
    # a process imports them, as its process.py
    modules = [module_of(name) for name in light if not name.endswith("trainer.py")]
    code = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\nprint('torch' in sys.modules)"
    assert python(code) == "False\n"
    # nor when a section is checked
    assert [
        name
        for name in tracked("toolkit/config")
        if any(to.split(".")[0] == "torch" for to in imports(name, source(name)))
    ] == []


# ------------------------------------------------------------ types


@pytest.mark.slow  # half a minute where mypy has no cache
def test_a_key_that_a_section_does_not_have_is_a_type_error(tmp_path: Path) -> None:
    """What would become of all readers of a key that is renamed."""
    reader = tmp_path / "reader.py"
    reader.write_text(
        "from extensions.sd_trainer.config import SdTrainerConfig\n\n\n"
        "def right(section: SdTrainerConfig) -> int:\n    return section.train.steps\n\n\n"
        "def wrong(section: SdTrainerConfig) -> object:\n    return section.train.stepz\n"
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(ROOT / "pyproject.toml"),
        str(reader),
    ]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    found, summary = result.stdout.splitlines()
    # Only its name: mypy's cache may name the folder of an earlier run of this test.
    assert found.endswith(
        '/reader.py:9: error: "TrainConfig" has no attribute "stepz"; maybe "steps"?  [attr-defined]'
    )
    assert summary == "Found 1 error in 1 file (checked 1 source file)"


# ------------------------------------------------------------ one model family is one
# folder


def family_words(text: str, word: str = "qwen") -> list[str]:
    """Names, imports and strings of a file that hold `word`; docstrings (sources are
    cited there) are let be."""
    if word not in text.lower():
        return []
    docstrings = {
        id(statement.value)
        for node in nodes_of(text)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for statement in node.body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    }
    found = []
    for node in nodes_of(text):
        if id(node) in docstrings:
            continue
        values = [
            getattr(node, field, None)
            for field in ("id", "attr", "arg", "name", "module", "value", "asname")
        ]
        found += [
            value
            for value in values
            if isinstance(value, str) and word in value.lower()
        ]
    return found


CAPTIONER = "extensions/tools/caption/captioner.py"
"""The model that writes captions is none that is trained."""

FAMILIES_BESIDE = [
    path.relative_to(ROOT) for path in ROOT.glob("extensions/*/family.py")
]
"""The facts of families that lie in an extension of their own."""


def test_no_room_but_models_knows_a_model_family() -> None:
    """Keys and messages for users are toolkit/config's to know; from_scratch trains
    classes of diffusers by name."""
    know = (
        "toolkit/models/",
        "toolkit/config/",
        "toolkit/registry.py",
        "extensions/from_scratch/",
        "extensions/compat/",
        "extensions/tools/shared/examples.py",
        CAPTIONER,
        *(f"{path.parent}/" for path in FAMILIES_BESIDE),
    )
    others = [
        name
        for name in tracked("run.py", "jobs", "toolkit", "extensions")
        if not name.startswith(know)
    ]
    assert {
        name: words for name in others if (words := family_words(source(name)))
    } == {}


def test_a_family_that_is_named_in_code_is_seen() -> None:
    texts = [
        "import qwen_image",
        "from toolkit.models.qwen_image import adapter",
        "is_qwen = True",
        "x.qwen",
        "if arch == 'qwen_image': pass",
        "def f(qwen): ...",
        "class QwenThing: ...",
    ]
    assert [text for text in texts if not family_words(text)] == []


# ------------------------------------------------------------ parts that may be absent

CORE = ("run.py", "launch.py", "jobs", "toolkit", "extensions/sd_trainer")

TABLE_OF_PARTS = "toolkit/registry.py"
"""The one file of the core that names what lies in a part."""

TESTS_OF_THE_CORE = (
    "tests/toolkit",
    "tests/config",
    "tests/jobs",
    "tests/extensions/sd_trainer",
)

TOOLS_THAT_ARE_PARTS = (
    "align",
    "best",
    "doctor",
    "ara",
    "publish",
    "ui",
)

COMMON_WORDS = {"best", "align", "ara"}
"""Tools whose names are words of the core too: of the best weights, of aligned memory,
of the cached adapters."""

TYPES_FROM_SCRATCH = r"(?:vae_trainer|flow_trainer|tiny_model|new_model)"


def words_of_a_tool(tool: str) -> str:
    """What names a tool: its command in a message or in code, its folder, its name as a
    text."""
    told = rf"(?:run\.py|atelier|COMMAND\}}) {tool}\b|extensions[./]tools[./]{tool}\b"
    asked = rf"(?:command|run_tool|section_of)\([\"']{tool}[\"']"
    return (
        f"{told}|{asked}"
        if tool in COMMON_WORDS
        else rf"{told}|{asked}|[\"']{tool}[\"']"
    )


WORDS_OF_PARTS = {
    # The names of files (tiny_model.json) are those of a format that the core reads.
    "from_scratch": rf"from_scratch|\b{TYPES_FROM_SCRATCH}\b(?!\.json)|(?i:latent_?flow|spade)",
    "compat": r"extensions[./]compat|\bcompat\b|(?i:fluxflow)",
    **{tool: words_of_a_tool(tool) for tool in TOOLS_THAT_ARE_PARTS},
}
"""Part -> a pattern of what names it: its folder, its types, its keys, its commands."""

USES_OF_PARTS = {
    "from_scratch": rf"extensions[./]from_scratch|[\"']?type[\"']?: [\"']?{TYPES_FROM_SCRATCH}|(?i:latent_?flow|spade)",
    "compat": r"extensions[./]compat|(?i:fluxflow)",
    **{
        tool: words_of_a_tool(tool).removesuffix(rf"|[\"']{tool}[\"']")
        for tool in TOOLS_THAT_ARE_PARTS
    },
}
"""The same for tests, which have a fixture `tiny_model` and jobs of many kinds."""


def parts_named(name: str, text: str, words: dict[str, str]) -> list[str]:
    """The lines of a file that name a part."""
    found = []
    words = {part: word for part, word in words.items() if re.search(word, text)}
    if not words:
        return []
    for number, line in enumerate(text.splitlines(), 1):
        found += [
            f"{name}:{number}: {part}: {line.strip()}"
            for part, word in words.items()
            if re.search(word, line)
        ]
    return found


def test_the_core_names_no_part_but_in_one_table() -> None:
    files = [name for name in tracked(*CORE) if name != TABLE_OF_PARTS]
    assert len(files) > 200
    assert [
        line
        for name in files
        for line in parts_named(name, source(name), WORDS_OF_PARTS)
    ] == []


def test_the_tests_of_the_core_use_no_part() -> None:
    files = [
        name
        for name in tracked(*TESTS_OF_THE_CORE)
        if Path(name).name != "test_architecture.py"
    ]
    files += [
        name
        for name in tracked("tests")
        if name.count("/") == 1 and not name.endswith("test_architecture.py")
    ]
    assert [
        line
        for name in files
        for line in parts_named(name, source(name), USES_OF_PARTS)
    ] == []
    # a test that needs a part imports it itself, below a mark
    a_part = re.compile(r"^(?:from|import) extensions\.(?!sd_trainer|example)", re.M)
    assert [name for name in files if a_part.search(source(name))] == []


def test_a_part_that_is_named_in_the_core_is_seen() -> None:
    for line, part in [
        ("from extensions.from_scratch import plan", "from_scratch"),
        ("if section.type == 'flow_trainer':", "from_scratch"),
        ('"""Loads the SPADE."""', "from_scratch"),
        ("load_object('extensions.compat.keys:KEYS')", "compat"),
        ("if save.fluxflow_files:", "compat"),
        ('remedy = "See run.py doctor."', "doctor"),
        ('f"{COMMAND} ui"', "ui"),
        ("command('best', folder)", "best"),
        ('("publish", str(folder))', "publish"),
    ]:
        found = parts_named("x.py", f"x = 1\n{line}\n", WORDS_OF_PARTS)
        assert found == [f"x.py:2: {part}: {line}"]


# ------------------------------------------------------------ names that lead somewhere


def test_every_registry_entry_loads() -> None:
    from toolkit.contracts.model import ModelFacts
    from toolkit.registry import Registry

    registries = {
        f"{module}.{attribute}": value
        for module in map(module_of, tracked("toolkit", "jobs", "extensions"))
        for attribute, value in vars(importlib.import_module(module)).items()
        if isinstance(value, Registry)
    }
    assert {
        "toolkit.optim.optimizer_args.OPTIMIZERS",
        "toolkit.registry.FAMILIES",
    } <= set(registries)
    nowhere = []
    for place, registry in registries.items():
        for name in INSTALLED if registry is OPTIMIZERS else registry:
            try:
                loaded = registry.load(name)
                is_known = (
                    callable(loaded)
                    or isinstance(loaded, ModelFacts)
                    or hasattr(loaded, "reads")
                )
                assert is_known, (
                    "is neither callable, nor a model family, nor a reader of files"
                )
            except Exception as error:  # noqa: BLE001 - all of them are to be listed
                nowhere.append(f"{place}[{name!r}]: {error!r}")
    assert nowhere == []


def test_every_extension_gives_its_config_and_its_process() -> None:
    from pydantic import BaseModel

    from jobs.process import BaseProcess
    from toolkit.extension import discover
    from toolkit.files.writing import EXTENSIONS_ROOT
    from toolkit.train.trackers.tracker import Tracker

    table = discover([EXTENSIONS_ROOT])
    assert [str(broken) for broken in table.broken] == []
    assert {"sd_trainer", "example"} <= {found.uid for found in table.found}
    for uid in table.uids("tracker"):
        assert issubclass(table.part(uid, "tracker", Tracker), Tracker)
    for found in table.found:
        if found.kind != "process":
            continue
        config = table.find_config(found.uid)
        assert config is None or issubclass(config, BaseModel), found
        assert issubclass(table.process_class(found.uid), BaseProcess), found


# ------------------------------------------------------------ files that are found by
# name


def mirrors(name: str) -> bool:
    """Whether tests/a/b/test_x.py lies in the mirror of a room, the folder a/b."""
    folder = Path(name).parent
    return (
        folder.as_posix() == OF_WHOLE_JOBS
        or (ROOT / folder.relative_to("tests")).is_dir()
    )


def test_each_test_file_lies_in_the_mirror_of_a_room() -> None:
    files = [name for name in tracked("tests") if Path(name).name.startswith("test_")]
    assert len(files) > 40
    assert not mirrors("tests/toolkit/nowhere/test_x.py")
    assert [name for name in files if not mirrors(name)] == []


def private_names(text: str) -> list[str]:
    """Names of ours with a leading underscore that a file imports."""
    named = (name.split(".") for name in imports("benchmarks/x.py", text))
    return [
        ".".join(parts)
        for parts in named
        if parts[0] in OWN and parts[-1].startswith("_")
    ]


def test_benches_use_public_names() -> None:
    assert private_names("from toolkit.a import _b\nfrom torch import _c") == [
        "toolkit.a._b"
    ]
    assert {
        name: private_names(source(name))
        for name in tracked("benchmarks")
        if private_names(source(name))
    } == {}


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    drawers = {"util", "utils", "helper", "helpers", "misc", "common"}
    assert [name for name in tracked() if Path(name).stem.strip("_") in drawers] == []


# ------------------------------------------------------------ files of the program are
# never code


def only_chosen_names(text: str) -> bool:
    """Whether `Unpickler` is nothing but the base of classes that say themselves what a
    pickle may name."""
    nodes = nodes_of(text)
    choosing = [
        node
        for node in nodes
        if isinstance(node, ast.ClassDef)
        and [*map(ast.unparse, node.bases)] == ["Unpickler"]
        and any(
            isinstance(own, ast.FunctionDef) and own.name == "find_class"
            for own in node.body
        )
    ]
    return len(choosing) == sum(
        isinstance(node, ast.Name) and node.id == "Unpickler" for node in nodes
    )


def test_nothing_that_runs_code_when_read_is_ever_read() -> None:
    assert not only_chosen_names("Unpickler(file).load()")
    reading = []
    for name in tracked(*MAY_IMPORT, *PROGRAMS):
        text = source(name)
        chosen = (
            {"pickle.Unpickler", "pickle.UnpicklingError"}
            if only_chosen_names(text)
            else set()
        )
        reading += [
            f"{name}: {to}"
            for to in imports(name, text)
            if to.split(".")[0] in ("pickle", "marshal", "dill", "joblib", "shelve")
            and to not in chosen
        ]
        named = ("load", "save", "eval", "exec")
        calls = [node for node in nodes_of(text) if isinstance(node, ast.Call)]
        calls = [
            node
            for node in calls
            if getattr(node.func, "attr", getattr(node.func, "id", "")) in named
        ]
        reading += [
            f"{name}: {call}"
            for node in calls
            if (call := ast.unparse(node.func))
            in ("torch.load", "torch.save", "yaml.load", "eval", "exec")
            and "weights_only=True"
            not in ast.unparse(node)  # tensors and plain containers alone
        ]
    assert reading == []


# ------------------------------------------------------------ packages

DISTRIBUTIONS = {"pyyaml": "yaml", "pillow": "PIL", "optimum-quanto": "optimum"}
"""The module of a distribution, where it has another name."""

OPTIONAL = {"lycoris", "matplotlib", "pyarrow", "wandb"}
OPTIONAL |= {"mlflow", "swanlab", "trackio"}
OPTIONAL |= {OPTIMIZERS[name].partition(":")[0] for name in EXTRAS}
"""Asked for by a key, or by a file of its format; an error names the package where it
is missing."""

FOR_THE_USER = {
    "socksio": "SOCKS proxies, which huggingface_hub reaches with it",
    "peft": "diffusers' load_lora_weights, in docs/use_your_lora.md",
    "python_multipart": "forms of the web page, which Starlette reads with it",
}
"""Required though the program does not import it, and for what."""


def third_party(name: str, text: str) -> set[str]:
    """Packages that a file imports, or names as "package.module:Class"."""
    constants = (
        node.value for node in nodes_of(text) if isinstance(node, ast.Constant)
    )
    imported = {module.split(".")[0] for module in imports(name, text)}
    return (imported | named(map(str, constants))) - OWN - sys.stdlib_module_names


def named(texts: Iterable[str]) -> set[str]:
    """The packages of texts as "package.module:Class". `MODEL` is a socket of
    ComfyUI."""
    path = re.compile(r"(\w+)(?:\.\w+)*:(?!(?:True|MODEL)$)[A-Z]\w+")
    return {match[1] for match in map(path.fullmatch, texts) if match}


def test_what_the_program_imports_is_what_it_requires() -> None:
    """A package that only tests or benches import is a requirement of theirs
    (requirements-dev.txt)."""
    lines = source("requirements.txt").splitlines()
    required = {line.split("==")[0] for line in lines if "==" in line}
    modules = {DISTRIBUTIONS.get(name, name.replace("-", "_")) for name in required}
    used = set().union(
        *(
            third_party(name, source(name))
            for name in tracked("toolkit", "extensions", "jobs", *PROGRAMS)
        )
    )
    used |= named(re.findall('"([^"]+)"', source("toolkit/optim/optimizers.json")))
    needed = (used - OWN - OPTIONAL - {"pydantic_core"}) | set(FOR_THE_USER)
    assert needed <= modules
    if all(
        (ROOT / "extensions" / folder).is_dir()
        for folder in ("compat", "from_scratch", "tools/ui")
    ):
        assert needed == modules, "nothing is required for a part that is not there"
