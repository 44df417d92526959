"""Finding process types, and keeping broken or equal-named ones from disturbing the
others."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.exit import report
from tests.conftest import ROOT, child_environment
from tests.parts import needs_foreign_names, needs_part
from tests.processes import output_of
from toolkit import extension
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.model_files import family_named, family_names, family_of
from toolkit.config.sections.network import NetworkConfig
from toolkit.config.sections.output import LoggingConfig
from toolkit.contracts.network_kinds import KINDS
from toolkit.errors import Interrupted, RunError, UserError
from toolkit.extension import Extension, discover, do_without
from toolkit.files.writing import EXTENSIONS_ROOT
from toolkit.registry import LEFT_OUT

Write = Callable[..., Path]


@pytest.fixture
def drop_ins(tmp_path: Path) -> Path:
    return tmp_path / "drop_ins"


@pytest.fixture(autouse=True)
def forget_imports() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("extension_", "installed_", "outer", "both")):
            del sys.modules[name]


def test_the_projects_own_extensions_are_whole() -> None:
    table = discover([EXTENSIONS_ROOT])
    assert table.broken == ()
    assert {found.folder.parent for found in table.found} == {EXTENSIONS_ROOT}
    assert table.process_class("example").__name__ == "ExampleProcess"
    assert table.find_config("example").__name__ == "ExampleConfig"


def test_extensions_path_adds_folders(
    tmp_path: Path, simple_extension: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    simple_extension("one", folder="a")
    itself = simple_extension("two", folder="b")
    monkeypatch.setenv(
        "EXTENSIONS_PATH", os.pathsep.join([str(tmp_path / "a"), "", str(itself)])
    )
    uids = {found.uid for found in discover().found}
    assert {"example", "one", "two"} <= uids


def test_packages_with_the_list_are_found_once_whatever_their_names(
    drop_ins: Path, simple_extension: Write, write_extension: Write
) -> None:
    for uid, package in (("good", "good"), ("json", "json"), ("one", "my-ext v1.2")):
        simple_extension(uid, package=package)
    for hidden in ("_private", ".hidden", "__pycache__"):
        simple_extension(f"uid{hidden}", package=hidden)
    skipped = write_extension("models_only", "AI_TOOLKIT_MODELS = []").resolve()
    (drop_ins / "loose.py").write_text("raise SystemExit")
    (drop_ins / "no_init").mkdir()
    again = (drop_ins / ".." / "drop_ins", drop_ins / "good")
    table = discover([drop_ins, *again])
    assert sorted(found.uid for found in table.found) == ["good", "json", "one"]
    assert (table.broken, table.skipped) == ((), (skipped,))
    assert table.process_class("one").__name__ == "SimpleProcess"
    assert table.process_class("json").__module__.startswith("extension_json_"), (
        "not the module of that name"
    )


def test_a_folder_that_is_not_there_is_reported_and_not_fatal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "nowhere" in discover([tmp_path / "nowhere"]).broken[0].reason
    monkeypatch.setenv("EXTENSIONS_PATH", "~no_such_user/extensions")
    (broken,) = discover().broken
    assert "cannot be read (see EXTENSIONS_PATH)" in broken.reason


def install(site: Path, **points: str) -> None:
    """What pip writes for a package with these entry points, into a folder on
    sys.path."""
    metadata = site / "their_extensions-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: their-extensions\nVersion: 1.0\n"
    )
    lines = [f"{name} = {module}" for name, module in points.items()]
    (metadata / "entry_points.txt").write_text(
        "\n".join(["[atelier.extensions]", *lines])
    )


def test_an_installed_package_is_found_by_its_entry_point(
    tmp_path: Path, simple_extension: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lie in a package; a name without a package is reported and disturbs
    nobody."""
    simple_extension("installed_one", folder="site")
    inner = simple_extension("installed_two", folder="site/outer")
    (inner.parent / "__init__.py").touch()
    install(
        tmp_path / "site",
        one="installed_one",
        two="outer.installed_two",
        none="no_such_package",
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    table = discover()
    found = {item.uid: item for item in table.found}
    assert table.process_class("installed_one").__module__ == "installed_one.process"
    assert (
        table.process_class("installed_two").__module__ == "outer.installed_two.process"
    )
    assert found["installed_two"].folder == inner
    (broken,) = table.broken
    assert (
        broken.reason
        == "entry point 'none' in atelier.extensions: there is no package 'no_such_package'"
    )
    assert "installed_one" not in {
        item.uid for item in discover([EXTENSIONS_ROOT]).found
    }


def test_a_folder_that_python_finds_too_has_each_class_once(
    tmp_path: Path, simple_extension: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By EXTENSIONS_PATH and by its entry point it is one extension, and the module
    that others import."""
    package = simple_extension("both", folder="site")
    install(tmp_path / "site", both="both")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("EXTENSIONS_PATH", str(package))
    table = discover()
    assert [item.uid for item in table.found].count("both") == 1
    assert table.process_class("both") is import_module("both.process").SimpleProcess


def test_two_threads_find_the_same(drop_ins: Path, simple_extension: Write) -> None:
    """As two requests of the page do, of which the second came while the first
    imported."""
    init = simple_extension("slow") / "__init__.py"
    init.write_text(f"import time\ntime.sleep(0.2)\n{init.read_text()}")
    with ThreadPoolExecutor(2) as pool:
        tables = list(pool.map(lambda _: discover([drop_ins]), range(2)))
    assert [[found.uid for found in table.found] for table in tables] == [
        ["slow"],
        ["slow"],
    ]


def test_equal_folder_names_in_two_places_both_work(
    tmp_path: Path, simple_extension: Write
) -> None:
    simple_extension("one", package="same", folder="a")
    simple_extension("two", package="same", folder="b")
    table = discover([tmp_path / "a", tmp_path / "b"])
    first, second = table.process_class("one"), table.process_class("two")
    assert first is not second
    assert first.__module__ != second.__module__


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class Own(BaseException): pass\nraise Own('x')", "Own: x"),
        ("AI_TOOLKIT_EXTENSIONS = 3", "not a list of classes"),
        ("class A: pass\nAI_TOOLKIT_EXTENSIONS = [A]", "not a class with a uid"),
        (
            "class A:\n    uid = 'a'\nAI_TOOLKIT_EXTENSIONS = [A()]",
            "not a class with a uid",
        ),
    ],
)
def test_a_broken_one_is_recorded_and_disturbs_no_other(
    drop_ins: Path,
    simple_extension: Write,
    write_extension: Write,
    source: str,
    reason: str,
) -> None:
    write_extension("a_broken", source)
    simple_extension("good")
    table = discover([drop_ins])
    assert table.process_class("good").__name__ == "SimpleProcess"
    (broken,) = table.broken
    assert broken.folder.name == "a_broken"
    assert reason in broken.reason
    assert reason in table.render()


def test_a_signal_during_an_import_stops_the_program(
    drop_ins: Path, write_extension: Write
) -> None:
    write_extension(
        "slow", "from toolkit.errors import Interrupted\nraise Interrupted(130)"
    )
    with pytest.raises(Interrupted):
        discover([drop_ins])["slow"]


def test_a_broken_one_is_shown_with_its_traceback_to_who_asks(
    drop_ins: Path, write_extension: Write
) -> None:
    write_extension(
        "folder_name", "class A:\n    uid = 'its_uid'\nimport no_such_module"
    )
    table = discover([drop_ins])
    for asked in ("its_uid", "folder_name"):
        with pytest.raises(UserError) as caught:
            table.find_config(asked)
        assert "Traceback" in str(caught.value)
        assert "import no_such_module" in str(caught.value)
        assert "importlib" not in str(caught.value)


def test_an_unknown_type_gets_the_nearest_and_the_broken_ones(
    drop_ins: Path, simple_extension: Write, write_extension: Write
) -> None:
    simple_extension("trainer")
    write_extension("other", "1 / 0")
    with pytest.raises(UserError) as caught:
        discover([drop_ins]).find_config("trianer")
    assert "Did you mean 'trainer'?" in str(caught.value)
    assert "ZeroDivisionError" in str(caught.value)


@needs_part("tools.new")
def test_what_people_write_for_a_trainer_leads_to_that_of_most_jobs() -> None:
    """Tools are named by where they are listed, not all of them."""
    table = discover()
    for uid in ("train", "lora", "trainer"):
        with pytest.raises(UserError) as caught:
            table.find_config(uid)
        assert (
            f"unknown process type '{uid}'. Did you mean 'sd_trainer'? Known names: "
            in str(caught.value)
        )
        assert "post_hoc_ema" not in str(caught.value) and "'run.py --help'" in str(
            caught.value
        )


def test_equal_uids_are_refused_only_when_asked_for(
    tmp_path: Path, simple_extension: Write
) -> None:
    folders = [
        simple_extension("twice", folder="a"),
        simple_extension("twice", folder="b"),
    ]
    simple_extension("once", folder="a")
    table = discover([tmp_path / "a", tmp_path / "b"])
    table.process_class("once")
    for ask in (table.find_config, table.process_class):
        with pytest.raises(UserError) as caught:
            ask("twice")
        assert all(str(folder) in str(caught.value) for folder in folders)


def test_what_an_extension_prints_stays_off_standard_output(
    drop_ins: Path, write_extension: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write_extension("loud", "print('hello')\nAI_TOOLKIT_EXTENSIONS = []")
    discover([drop_ins]).render()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_the_process_is_imported_only_when_asked_for(
    drop_ins: Path, simple_extension: Write
) -> None:
    package = simple_extension("late")
    (package / "process.py").write_text("import no_such_module")
    table = discover([drop_ins])
    assert table.find_config("late") is None
    with pytest.raises(RunError) as caught:
        table.process_class("late")
    assert str(package) in str(caught.value)
    assert "No module named 'no_such_module'" in str(caught.value)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


CONFIGS = """
    class Base:
        @classmethod
        def get_process(cls): return dict
    class Fails(Base):
        uid = "fails"
        @classmethod
        def get_config(cls): raise KeyError("lost")
    class Wrong(Base):
        uid = "wrong"
        @classmethod
        def get_config(cls): return dict
    class Right(Base):
        uid = "right"
        @classmethod
        def get_config(cls):
            from pydantic import BaseModel
            return BaseModel
    AI_TOOLKIT_EXTENSIONS = [Fails, Wrong, Right]
"""


def test_a_config_that_cannot_be_given_is_reported_with_its_folder(
    drop_ins: Path, write_extension: Write
) -> None:
    package = write_extension("models", CONFIGS)
    table = discover([drop_ins])
    with pytest.raises(UserError, match="KeyError: 'lost'") as caught:
        table.find_config("fails")
    assert str(package) in str(caught.value)
    with pytest.raises(UserError, match="not a pydantic model"):
        table.find_config("wrong")


def test_configs_leaves_out_what_has_none(
    drop_ins: Path, write_extension: Write, simple_extension: Write
) -> None:
    simple_extension("unchecked")
    write_extension("models", CONFIGS)
    assert list(discover([drop_ins]).configs()) == ["right"]


def test_an_extension_without_a_process_says_so() -> None:
    class Empty(Extension):
        uid = "empty"

    assert Empty.get_config() is None
    with pytest.raises(NotImplementedError, match="Empty needs get_process"):
        Empty.get_process()


def test_a_misspelt_attribute_is_not_taken_for_a_process(
    write_extension: Write,
) -> None:
    init = """
        from toolkit.extension import Extension

        class Copies(Extension):
            uid, calback = "copies", ".callback:Copies"

        AI_TOOLKIT_EXTENSIONS = [Copies]
    """
    table = discover([write_extension("copies", init)])
    with pytest.raises(UserError, match=r"'copies' .* gives none of process, .* callb"):
        table.find("copies", "callback")


NAMED = """
    from toolkit.extension import Extension
    class First(Extension):
        uid, process, config = "first", ".inside:Process", "pydantic:BaseModel"
    class Second(First):
        uid, command = "second", ".inside:Flags"
    AI_TOOLKIT_EXTENSIONS = [First, Second]
"""


def test_classes_are_named_by_text_relative_to_who_says_so(
    drop_ins: Path, write_extension: Write
) -> None:
    package = write_extension("named", NAMED)
    (package / "inside.py").write_text(
        "class Process: pass\nclass Flags:\n    model_validate = None\n"
    )
    table = discover([drop_ins])
    assert table.process_class("second") is table.process_class("first")
    assert [table.find_config(uid).__name__ for uid in ("first", "second")] == [
        "BaseModel",
        "BaseModel",
    ]
    assert [table.find_command(uid).__name__ for uid in ("first", "second")] == [
        "BaseModel",
        "Flags",
    ]
    (package / "inside.py").write_text("")
    second = table["second"].extension
    second.process = ".elsewhere:Process"  # of its own package, whoever it extends
    with pytest.raises(RunError, match="elsewhere"):
        table.process_class("second")


def test_extensions_of_the_working_folder_are_those_of_an_installed_program(
    write_extension: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout has a folder of this name, and does not look into another one."""
    write_extension("mine", LISTED, folder="extensions")
    monkeypatch.chdir(tmp_path)
    assert "own" not in {found.uid for found in discover().found}
    monkeypatch.setattr(extension, "IS_INSTALLED", True)
    assert "own" in {found.uid for found in discover().found}


LISTED = """
    class Own:
        uid = "own"
        name = "own"

    AI_TOOLKIT_EXTENSIONS = [Own]
"""


# ------------------------------------------------------------ families and kinds


FAMILY = """
    from toolkit.models.qwen_image.family import TextToImageFamily

    class Terse(TextToImageFamily):
        arch, title, pipelines, published = "terse", "Terse", ("TersePipeline",), {}

    FAMILY = Terse()
"""
KIND = """
    from toolkit.contracts.network_kinds import ActivationUnits, NetworkKind, lora_shapes

    KIND = NetworkKind("nowhere:Network", lora_shapes, ActivationUnits())
"""
POINTS = """
    from toolkit.extension import Extension

    class Terse(Extension):
        uid, family = "terse", ".family:FAMILY"

    class Broken(Extension):
        uid, family = "broken", ".absent:FAMILY"

    class Newer(Extension):
        uid, family, requires = "newer", ".family:FAMILY", ">=99"

    class Other(Extension):
        uid, family = "other", ".family:FAMILY"

    class Made(Extension):
        uid, family = "made", ".family:Terse"

    class Kind(Extension):
        uid, network = "terse", ".kind:KIND"

    class Taken(Extension):
        uid, family = "qwen_image", ".family:FAMILY"

    class TakenKind(Extension):
        uid, network = "dora", ".kind:KIND"

    AI_TOOLKIT_EXTENSIONS = [Terse, Broken, Newer, Other, Made, Kind, Taken, TakenKind]
"""


def test_families_and_kinds_of_network_are_known_by_their_uid(
    write_extension: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a job and of a model's own files; what cannot be loaded is reported once, and
    disturbs no other."""
    package = write_extension("several", POINTS, family=FAMILY, kind=KIND)
    assert "terse" not in family_names()
    monkeypatch.setenv("EXTENSIONS_PATH", str(package))
    family = family_named("terse")
    assert (family.title, family_of("TersePipeline")) == ("Terse", family)
    assert {"broken", "newer", "other", "made"}.isdisjoint(family_names())
    assert ModelConfig(name_or_path="a/b", arch="T-erse:tag").arch == "terse"
    assert (
        NetworkConfig(type="terse").size() == "rank 16, alpha 16 (not given: the rank)"
    )
    assert KINDS["terse"].shapes is KINDS["lora"].shapes and "terse" not in KINDS
    told = capsys.readouterr().err
    assert told.count("No module named") == 1 and told.count("needs Atelier >=99") == 1
    assert told.count("its arch is 'terse', and the extension's uid 'other'") == 1
    assert told.count("Terse'> is not an object of toolkit.models.families:Model") == 1
    for taken in ("family 'qwen_image'", "network 'dora'"):
        assert told.count(f"{taken} is the program's own. Give it another uid.") == 1
    assert "terse (network)" in discover().render()
    for section in (ModelConfig, NetworkConfig):
        assert '"terse"' in json.dumps(section.model_json_schema())
    monkeypatch.setenv(LEFT_OUT, "several")
    with pytest.raises(UserError, match=r"model\.arch: 'terse' is not supported yet"):
        family_named("terse")
    with pytest.raises(ValidationError, match="'terse' is unknown"):
        NetworkConfig(type="terse")


# ------------------------------------------------------------ --without


@pytest.fixture
def two(
    tmp_path: Path, simple_extension: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The types `one` and `two`, in folders of these names; nothing is left out before
    or after."""
    simple_extension("one")
    simple_extension("two")
    monkeypatch.setenv("EXTENSIONS_PATH", str(tmp_path / "drop_ins"))
    monkeypatch.setenv(LEFT_OUT, "")


def test_what_without_names_is_not_found(two: None) -> None:
    before = discover().found
    do_without(["one"])
    table = discover()
    assert {extension.uid for extension in before} - {
        extension.uid for extension in table.found
    } == {"one"}
    with pytest.raises(UserError) as caught:
        table["one"]
    first, last = str(caught.value).splitlines()
    assert first.startswith("unknown process type 'one'. ") and "two" in first
    assert last == "'--without one' leaves it out."
    with pytest.raises(UserError) as caught:
        table["three"]
    assert "leaves it out" not in str(caught.value)


def test_a_folder_that_without_names_is_not_imported(
    tmp_path: Path, write_extension: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_extension("harmful", "open('touched', 'w')\nAI_TOOLKIT_EXTENSIONS = []")
    monkeypatch.setenv("EXTENSIONS_PATH", str(tmp_path / "drop_ins"))
    monkeypatch.setenv(LEFT_OUT, "harmful")
    monkeypatch.chdir(tmp_path)
    table = discover()
    assert not Path("touched").exists()
    with pytest.raises(UserError, match="'--without harmful' leaves it out"):
        table["harmful"]


def test_a_name_that_no_extension_has_is_refused(two: None) -> None:
    with pytest.raises(UserError) as caught:
        do_without(["tow"])
    assert str(caught.value).startswith(
        "--without tow: there is no such extension. Did you mean 'two'? Known names: "
    )
    assert os.environ[LEFT_OUT] == ""


def test_a_type_may_be_called_by_the_folder_of_its_process(
    write_extension: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from toolkit.extension import Extension\n\n\n"
    for uid, folder in (
        ("first", "shared_folder"),
        ("second", "shared_folder"),
        ("third", "other_folder"),
    ):
        source += f"class {uid}(Extension):\n    uid, process = {uid!r}, '.{folder}.process:X'\n\n\n"
    write_extension(
        "several", f"{source}AI_TOOLKIT_EXTENSIONS = [first, second, third]\n"
    )
    monkeypatch.setenv("EXTENSIONS_PATH", str(tmp_path / "drop_ins"))
    monkeypatch.setenv(LEFT_OUT, "")
    do_without(["shared_folder"])
    assert {"first", "second", "third"} & {
        extension.uid for extension in discover().found
    } == {"third"}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "There is no p.py in {folder}, which this extension names."),
        ("from .gone.more import x", "There is no gone.py in {folder}, which"),
        (
            "import cv9",
            "No module named 'cv9', a package of this extension",
        ),
        ("from p import x", "p.py is in {folder}: write a dot before its name, '.p'."),
        (
            "from cv9.inner import x",
            "No module named 'cv9', a package of this extension",
        ),
        pytest.param(
            "from extensions_built_in.sd_trainer import X",
            "ai-toolkit's own code",
            marks=needs_foreign_names,
        ),
    ],
)
def test_what_an_extension_lacks_is_blamed_on_the_extension(
    write_extension: Write, tmp_path: Path, capsys, source: str | None, words: str
) -> None:
    init = """
        from toolkit.extension import Extension


        class Lacks(Extension):
            uid = "lacks"
            process = ".p:P"


        AI_TOOLKIT_EXTENSIONS = [Lacks]
    """
    folder = write_extension("lacks", init, **({"p": source} if source else {}))
    table = discover([folder])
    with pytest.raises(RunError) as caught:
        table.process_class("lacks")
    assert words.format(folder=folder) in str(caught.value)
    assert report(caught.value) == 1
    assert "requirements.txt" not in capsys.readouterr().err


def test_a_class_is_named_by_its_module_and_its_name(write_extension: Write) -> None:
    init = """
        from toolkit.extension import Extension

        class Dotted(Extension):
            uid, process = "dotted", ".p.P"

        AI_TOOLKIT_EXTENSIONS = [Dotted]
    """
    table = discover([write_extension("dotted", init)])
    with pytest.raises(RunError, match=r"process = '\.p\.P' is not \"module:Class\""):
        table.process_class("dotted")


def test_what_a_library_of_an_extension_lacks_is_not(
    write_extension: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "site" / "its_library.py"
    library.parent.mkdir()
    library.write_text("import cv9\n")
    monkeypatch.syspath_prepend(library.parent)
    folder = write_extension(
        "reads", "import its_library\nAI_TOOLKIT_EXTENSIONS = []\n"
    )
    (broken,) = discover([folder]).broken
    assert broken.reason == f"ModuleNotFoundError: No module named 'cv9' ({library}:1)"


@pytest.mark.parametrize(
    ("requires", "told"),
    [
        ("", ""),
        (">=0.3", ""),
        (">=0.2,<1", ""),
        ("~=0.3.0", ""),
        ("!=0.3.0", "needs Atelier !=0.3.0, and this is 0.3.0"),
        (">=0.4", "needs Atelier >=0.4, and this is 0.3.0"),
        ("<0.3", "needs Atelier <0.3, and this is 0.3.0"),
        ("0.3", "requires = '0.3' is not a range of versions"),
        (0.3, "requires = 0.3 is not a range of versions"),
    ],
)
def test_an_extension_for_another_version_is_refused_by_name(
    drop_ins: Path, write_extension: Write, monkeypatch, requires: object, told: str
) -> None:
    monkeypatch.setattr(extension, "VERSION", "0.3.0")
    write_extension(
        "mine",
        f"class A:\n    uid = 'mine'\n    requires = {requires!r}\nAI_TOOLKIT_EXTENSIONS = [A]",
    )
    table = discover([drop_ins])
    if not told:
        assert table["mine"].uid == "mine"
        return
    with pytest.raises(UserError) as caught:
        table["mine"]
    assert told in str(caught.value) and str(drop_ins / "mine") in str(caught.value)
    # It is listed, with the reason.
    assert [one.uid for one in table.found] == ["mine"]
    assert f"refused: {caught.value}" in table.render()
    assert table.to_json()["broken"][0]["reason"] == str(caught.value)


def test_a_tracker_for_another_version_is_refused_before_the_run(
    write_extension: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_extension(
        "rows",
        "class A:\n    uid = 'rows'\n    tracker = '.no:No'\n    requires = '>=99'\nAI_TOOLKIT_EXTENSIONS = [A]",
    )
    monkeypatch.setenv("EXTENSIONS_PATH", str(folder.parent))
    with pytest.raises(ValueError, match=r"'rows' .* needs Atelier >=99"):
        LoggingConfig(log_with="rows")


# ------------------------------------------------------------ parts that are not asked for


HARMFUL = {
    "hangs": "import time\ntime.sleep(10**6)",
    "exits": "import os\nos._exit(4)",
    "prints": "import os\nos.write(1, b'RAW')",
    "thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(10**6,)).start()",
}


@pytest.fixture
def harmful(tmp_path: Path) -> dict[str, str]:
    """The environment in which packages are installed that do this at their import."""
    site = tmp_path / "site"
    for name, body in HARMFUL.items():
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text(
            f"{body}\nAI_TOOLKIT_EXTENSIONS = []\n"
        )
    install(site, **{name: name for name in HARMFUL})
    return {"PYTHONPATH": str(site), "EXTENSIONS_PATH": ""}


def test_a_package_is_imported_when_a_name_in_it_is_asked_for(
    drop_ins: Path, simple_extension: Write, write_extension: Write
) -> None:
    simple_extension("one")
    write_extension("other", "print('hello')\nAI_TOOLKIT_EXTENSIONS = []")
    hidden = "class A:\n    uid = 'the' + '_type'\n    name = ''\nAI_TOOLKIT_EXTENSIONS = [A]"
    folder = write_extension("third", hidden)
    table = discover([drop_ins])
    assert table["one"].uid == "one"
    assert not [name for name in sys.modules if name.startswith("extension_other")]
    assert not table.is_tool("one")
    assert table["the_type"].folder == folder  # found by an import of all of them
    assert [name for name in sys.modules if name.startswith("extension_other")]


@pytest.mark.slow
def test_an_installed_part_that_is_not_asked_for_is_not_imported(
    harmful: dict[str, str], run_py, write_job, trainer, make_pictures, tmp_path: Path
) -> None:
    job = write_job(trainer(make_pictures(tmp_path / "photos", "a")))
    plan = run_py(job, "--dry-run", "--json", env=harmful)
    assert plan.returncode == 0 and json.loads(plan.stdout)
    without = [word for name in HARMFUL for word in ("--without", name)]
    result = run_py("--list-extensions", *without, env=harmful)
    assert (result.returncode, result.stderr) == (0, "")
    spared = [
        word for name in set(HARMFUL) - {"prints"} for word in ("--without", name)
    ]
    result = run_py("--list-extensions", "--json", *spared, env=harmful)
    assert json.loads(result.stdout)["extensions"] and result.stderr == "RAW"


@pytest.mark.slow
def test_a_part_that_takes_long_is_named(
    harmful: dict[str, str], tmp_path: Path
) -> None:
    asked = ["--list-extensions", "--json"]
    harmful |= {LEFT_OUT: "exits,thread"}
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *asked],
        env=child_environment(harmful),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    told = child.stderr.readline()
    child.kill()
    child.communicate()
    folder = tmp_path / "site" / "hangs"
    assert told.startswith(f"waiting for the extension {folder}, ")
    words = shlex.split(told.rpartition("To do without it: ")[2])
    assert words[-4:] == ["--without", "hangs", *asked]
    listed = output_of(*words, cwd=Path(), env=child_environment(harmful), seconds=60)
    assert json.loads(listed)["extensions"]


def test_a_part_of_the_program_is_not_waited_for_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The program needs it, however slow the disk is."""
    monkeypatch.setattr(extension, "PATIENCE_S", 0.01)
    for package in (extension.EXTENSIONS_ROOT / "tools", tmp_path / "other"):
        with extension._announced(package):
            time.sleep(0.1)
    (told,) = capfd.readouterr().err.splitlines()
    assert told.startswith(f"waiting for the extension {tmp_path / 'other'}, ")
