"""The command line: `run.py config/my_char.yaml`, or the name of a tool with its flags.

One config runs in this process. Several run one after another, each in a fresh
interpreter. Started by `torchrun` or `accelerate launch`, several processes run one
config together (docs/multi_gpu.md). Exit codes: 0 done, 1 failure, 2 error in the
input, 130 Ctrl-C and 75 SIGTERM or SIGHUP after a clean save.

Imports are late on purpose: --dry-run never loads torch, and a Python or package that
is missing gets a plain message.
"""

from __future__ import annotations

import sys

from toolkit.system.environment import say_damage, why_not

if lack := why_not(sys.version_info[:2]):
    sys.exit(lack)
else:
    sys.excepthook = say_damage  # while the modules below are imported

import argparse
import faulthandler
import gc
import json
import os
import re
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from difflib import get_close_matches
from functools import partial
from itertools import chain, takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs import ExtensionJob, JobOptions, exit, multi_run
from toolkit.commands import command
from toolkit.errors import EXIT_DONE, EXIT_FAILURE, EXIT_MISTAKE, UserError
from toolkit.extension import FIRST_STAGE, discover, do_without
from toolkit.files import log, redact
from toolkit.files.writing import (
    CONFIG_SUFFIXES,
    find_config,
    moved_examples,
    read_source,
)
from toolkit.registry import (
    FOREIGN_FLAGS,
    FOREIGN_TOOLS,
    HELP_ON_FLAGS,
    HINTED_TOOLS,
    collection_paused,
    find_object,
    hinted_tool,
    is_present,
    load_object,
)
from toolkit.system import distributed, signals, threads
from toolkit.system.distributed_env import DistributedEnv, read_distributed_env
from toolkit.system.torch_version import check_torch_version, prepare_allocator
from toolkit.version import COMMAND, NAME, VERSION

TOOL_NAME = re.compile(r"[a-z][a-z0-9_]*")
"""What the name of a tool looks like; a config of that name is meant by its ending
(`report.yaml`)."""

PAGE_WORDS = ("web", "gui", "serve", "webui")

OTHER_WORDS = {
    **dict.fromkeys(("check", "plan", "validate", "test"), f"{COMMAND} {{}} --dry-run"),
    **dict.fromkeys(
        ("resume", "continue"), f"{COMMAND} {{}} (a job that is run again resumes)"
    ),
    **dict.fromkeys(
        ("sample", "infer", "inference"),
        f"{COMMAND} generate --lora FILE --prompt TEXT",
    ),
    **dict.fromkeys(("train", "run", "start"), f"{COMMAND} {{}}"),
    **dict.fromkeys(PAGE_WORDS, f"{COMMAND} {HINTED_TOOLS['page']}"),
    **dict.fromkeys(
        ("stop", "pause", "cancel"), "touch RUN/control/stop (or Ctrl-C where it runs)"
    ),
    **dict.fromkeys(
        ("delete", "remove"), f"{COMMAND} runs delete NAME (or datasets, jobs)"
    ),
    **dict.fromkeys(
        ("quickstart", "demo", "example"), f"{COMMAND} config/examples/quickstart.yaml"
    ),
    "tensorboard": "tensorboard --logdir FOLDER (the job's logging.logging_dir)",
    "compare": f"{COMMAND} grid --lora FILE FILE --prompt TEXT",
    "export": f"{COMMAND} convert FILE OUTPUT --to PROGRAM",
    **dict.fromkeys(("create", "init", "make"), f"{COMMAND} new {{}}"),
    "version": f"{COMMAND} --version",
    "list": f"{COMMAND} --help, which lists the tools",
}
"""First word that is neither a config nor a tool -> what to write, with the other words
in it, or a name for a job."""

OTHER_FLAGS = {
    **dict.fromkeys(
        ("resume", "continue"),
        f"a job that is run again resumes. Write: {COMMAND} JOB.yaml",
    ),
    **dict.fromkeys(
        ("plan", "check", "dry", "validate", "test"),
        f"Write: {COMMAND} JOB.yaml --dry-run",
    ),
    "debug": f"Write: {COMMAND} JOB.yaml -v, which prints the whole plan",
    "quiet": "the output has no lower level. Leave the flag out.",
    "gpu": f"'{COMMAND} new NAME FOLDER --gpu GB' writes a job for a GPU. A job has no such flag: leave it out.",
}
"""Flag that jobs do not have -> what to write."""

JOB_SWITCHES = (
    "--dry-run",
    "--restart",
    "--allow-change",
    "--recover",
    "-r",
    "--json",
    "--memory",
)
"""Options without a value, which tools do not have, or have behind their name."""

OWN_TOOLS = {
    "import": "convert a file or a command of another program to a job",
    "completion": "print what completes the command line in bash, zsh or fish",
}
"""Commands of this module beside the tools -> what they are for."""

EVERYDAY = ("configs", "help", "dry_run", "verbose", "set", "sweep", "restart")
"""Options that -h shows."""

RUN_WORDS = ("train", "run", "start")
"""What other programs write before the name of a job."""

if TYPE_CHECKING:
    from jobs.dry_run import JobPlan
    from jobs.sweep import Variant
    from toolkit.config import JobConfig
    from toolkit.extension import ExtensionTable
    from toolkit.system.distributed import ProcessGroup


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what the arguments ask for and returns the exit code."""
    prepare_streams()
    prepare_allocator()
    argv, absent = without_parts(sys.argv[1:] if argv is None else argv)
    if absent:
        code = exit.run_with_exit_code(leave_parts_out, absent)
        if code != EXIT_DONE:
            return code
    if message := long_dash(argv):
        exit.print_error(message)
        return EXIT_MISTAKE
    if argv[:1] == ["help"] and not is_config("help"):
        argv = [*argv[1:2], "--help"]
    if argv[:1] == ["import"]:
        arguments = import_parser().parse_args(argv[1:])
        with log.shown():
            return exit.run_with_exit_code(import_job, arguments)
    if argv[:1] == ["completion"]:
        arguments = completion_parser().parse_args(argv[1:])
        return exit.run_with_exit_code(print_completion, arguments.shell)
    if argv and TOOL_NAME.fullmatch(argv[0]) and discover().is_tool(argv[0]):
        with log.shown():
            return exit.run_with_exit_code(run_tool, argv)
    try:
        if argv:
            message = other_word(argv) or tool_behind(argv)
            if message:
                exit.print_error(message)
                return EXIT_MISTAKE
        arguments = parse_arguments(argv)
        with log.shown():
            code = exit.run_with_exit_code(dispatch_logged, arguments)
    finally:
        is_written = log.flush_streams()
    if arguments.dry_run or not arguments.configs:  # what it prints is all that it does
        return code if is_written or code != EXIT_DONE else EXIT_FAILURE
    return code


class Trained(NamedTuple):
    """How a job of `train` has ended.

    Example::

        done = train("config/my_char.yaml")
        print(done.exit_code, done.folder)
    """

    exit_code: int
    """As that of the command (docs/json.md)."""

    folder: Path | None
    """Folder of the run of its last process that trains; None where there is none."""

    answer: dict[str, Any]
    """What `--json` prints at the end: `folders`, `files`, `errors`."""


def train(job: str | os.PathLike[str] | Mapping[str, Any], *flags: str) -> Trained:
    """Runs one job in this process, as `run.py JOB FLAGS` does, and may be called again.

    It raises nothing for a job that is refused, fails or is stopped: that is in what it
    returns, and said on standard error. In the main thread Ctrl-C saves and stops the
    run; the handlers of signals are then as before.

    job: its file, or what would be in the file. flags: such as `"--set",
    "train.lr=2e-4"`. Raises UserError for flags of several runs or of none.
    """
    prepare_streams()
    prepare_allocator()
    before = {number: signal.getsignal(number) for number in signals.to_handle()}
    read: list[JobConfig] = []
    with TemporaryDirectory() as folder, log.shown():
        path = str(job) if not isinstance(job, Mapping) else f"{folder}/job.yaml"
        if isinstance(job, Mapping):
            import yaml  # here: --help does not need it

            plain = json.loads(json.dumps(job, default=os.fspath))
            Path(path).write_text(
                yaml.safe_dump(plain, sort_keys=False, allow_unicode=True),
                encoding="utf-8",
            )
        try:
            arguments = parse_arguments([path, *flags])
        except SystemExit as refused:
            raise UserError(f"train: {shlex.join(flags)} is refused.") from refused
        if arguments.configs != [path] or arguments.variants or arguments.dry_run:
            raise UserError("train: it is one run of one job. Call it for each run.")
        env = read_distributed_env()
        try:
            code, error = exit.code_and_error(run_job, arguments, env, read)
        finally:
            if current_thread() is main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler or signal.SIG_DFL)
            log.flush_streams()
        from jobs.as_json import end_of_run

        answer = end_of_run(path, next(iter(read), None), code, error)
    folders = answer["folders"]
    return Trained(code, Path(folders[-1]) if folders else None, answer)


def without_parts(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without each `--without NAME`, and the names. Jobs and tools take
    them alike."""
    parser = argparse.ArgumentParser(prog=COMMAND, add_help=False, allow_abbrev=False)
    parser.add_argument("--without", action="append", default=[])
    # what follows it are file names
    end = list(argv).index("--") if "--" in argv else len(argv)
    arguments, rest = parser.parse_known_args(argv[:end])
    return [*rest, *argv[end:]], arguments.without


def leave_parts_out(names: Sequence[str]) -> int:
    do_without(names)
    return EXIT_DONE


def is_config(argument: str) -> bool:
    """Whether there is a config of this name."""
    with suppress(UserError):
        return bool(find_config(argument))
    return False


def long_dash(argv: Sequence[str]) -> str:
    """The correction of a flag whose dashes a text editor or a page has made one long
    dash; empty where there is none.

    >>> print(long_dash(["job.yaml", "\u2013dry-run"]))
    \u2013dry-run: begins with a long dash. Write --dry-run
    """
    for word in argv:
        flag = re.fullmatch(r"-?[\u2010-\u2015\u2212]-?([a-z][\w-]*)(=.*)?", word)
        if flag:
            dashes = "--" if len(flag[1]) > 1 else "-"
            return f"{word}: begins with a long dash. Write {dashes}{flag[1]}"
    return ""


def other_word(argv: Sequence[str]) -> str:
    """The correction of a first argument that is neither a config nor a tool; empty
    where no name is near."""
    word, *others = argv
    if not TOOL_NAME.fullmatch(word) or is_config(word):
        return ""
    from toolkit.config.reading.removed import removed

    if gone := removed("commands").get(word):
        return f"{word}: {gone}"
    if word in RUN_WORDS and others:
        return f"{word}: a job is run by its name alone. Write: {shlex.join([COMMAND, *others])}"
    if word in OTHER_WORDS and (word not in PAGE_WORDS or hinted_tool("page")):
        return (
            f"{word}: neither a config nor a tool. Write: "
            f"{OTHER_WORDS[word].format(shlex.join(others) or 'JOB.yaml')}"
        )
    if hidden := [one.without for one in discover().hidden if one.concerns(word)]:
        return f"{word}: neither a config nor a tool. '--without {hidden[0]}' leaves it out."
    near = get_close_matches(
        word,
        [*discover().tools(), *OWN_TOOLS, *(RUN_WORDS if others else ())],
        n=1,
        cutoff=0.7,
    )
    if near and near[0] in RUN_WORDS:
        return f"{word}: a job is run by its name alone. Write: {shlex.join([COMMAND, *others])}"
    if near:
        return f"{word}: neither a config nor a tool. Did you mean: {shlex.join([COMMAND, near[0], *others])}"
    return ""


def tool_behind(argv: Sequence[str]) -> str:
    """The correction of switches for jobs before the name of a tool; empty for all
    other words."""
    before = list(takewhile(lambda word: word.replace("_", "-") in JOB_SWITCHES, argv))
    tool, *others = argv[len(before) :] or [""]
    if not before or is_config(tool) or not discover().is_tool(tool):
        return ""
    write = shlex.join([COMMAND, tool, *others])
    return f"{tool}: the name of a tool comes first, and {' '.join(before)} is for jobs. Write: {write}"


def run_tool(argv: Sequence[str]) -> int:
    """Runs the tool that the first argument names, with the others as its flags."""
    signals.install()
    extensions = discover()
    uid, *flags = argv
    from toolkit.config.reading.tool import ToolConfig, load_tool, tool_parser

    model = extensions.find_command(uid)
    if model is None or not issubclass(model, ToolConfig):
        raise UserError(
            f"{uid} cannot be run as a command. Use it as a process in a job."
        )
    if {"-h", "--help"} & set(flags):
        from toolkit.commands import command

        tool_parser(uid, model, (), command(), "-h" in flags).print_help()
        return EXIT_DONE
    config = load_tool(uid, model, flags)
    print_warnings(config)
    return run_processes(config, extensions, JobOptions())


def print_warnings(config: JobConfig) -> None:
    for warning in filter(None, [check_torch_version(), *config.warnings]):
        exit.print_error(f"warning: {warning}")


def run_processes(
    config: JobConfig,
    extensions: ExtensionTable,
    options: JobOptions,
    process_group: ProcessGroup | None = None,
) -> int:
    """Builds the processes of a job and runs them."""
    with collection_paused(), signals.defer_signals() as request:
        for entry in config.processes:
            extensions.process_class(entry.type)  # imports what it needs
        threads.use_free_cores()
        gc.freeze()  # modules stay: no later search for cycles goes through them
        job = ExtensionJob(config, extensions, options, process_group)
    request.check()
    try:
        job.run()
    finally:
        job.cleanup()
    return EXIT_DONE


def _add_map(add: Callable[..., argparse.Action]) -> None:
    """The flag of `run.py JOB` and of `run.py import`."""
    add(
        "--map",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="replace OLD by NEW at the beginning of paths",
    )


def import_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{COMMAND} import",
        description="Converts a file or a command of another program to a job.",
    )
    add = parser.add_argument
    add("source", metavar="FILE_OR_COMMAND", help="a file, or a command in quotes")
    add(
        "-o",
        "--output",
        metavar="FILE",
        help="write it to this file, which is never replaced",
    )
    add("-n", "--name", metavar="NAME", help="name of the job")
    _add_map(add)
    return parser


def import_job(arguments: argparse.Namespace) -> int:
    """`run.py import`: prints, or writes, the job that another program's file or
    command is here."""
    from toolkit.config import load_job
    from toolkit.config.reading.foreign import COMMAND_LINE, holds_command
    from toolkit.files.writing import file_in_the_way, with_schema, write_text

    signals.install()
    output = path_of("--output", arguments.output) if arguments.output else None
    if output and (output.exists() or file_in_the_way(output.parent)):
        raise UserError(
            f"--output: '{output}' exists and is never replaced. Give another name."
        )
    is_text = holds_command(arguments.source) and not os.path.exists(arguments.source)
    tool = foreign_tool(
        arguments.source if is_text else text_of(find_config(arguments.source))
    )
    if tool:
        if output:
            raise UserError(
                "--output applies to jobs only; this converts to a command. Remove it."
            )
        print_tool(*tool)
        return EXIT_DONE
    with redirect_stdout(sys.stderr):
        config = load_job(
            COMMAND_LINE if is_text else find_config(arguments.source),
            discover().find_config,
            command=arguments.source if is_text else "",
            name=arguments.name,
            moved=moved_folders(arguments.map),
            as_job=True,
        )
    if output is None:
        print(config.unexpanded_text, end="")
        return EXIT_DONE
    write_text(output, with_schema(config.unexpanded_text, output))
    print(f"{output}: written. Next: {command(output, '--dry-run')}")
    return EXIT_DONE


def path_of(flag: str, text: str) -> Path:
    """The path that a flag gives. Raises UserError for a text that no path can have."""
    from pydantic import TypeAdapter, ValidationError

    from toolkit.config.reading.field_types import PathStr

    try:
        return Path(TypeAdapter(PathStr).validate_python(text)).expanduser()
    except ValidationError as error:
        raise UserError(f"{flag}: {error.errors()[0]['msg']}") from error


def text_of(file: Path) -> str:
    """The text of a file, to see whether it is a command; empty: a pipe, which can be
    read only once, or unreadable, which its reader says."""
    with suppress(OSError):
        return read_source(file).decode("utf-8", "replace") if file.is_file() else ""
    return ""


def foreign_tool(text: str) -> tuple[list[str], list[str]] | None:
    """The words of our command for one of another program's scripts that trains
    nothing, and a line for each flag that has no counterpart; None for all other
    texts."""
    from toolkit.config.reading.foreign import is_command

    find_tool = find_object(FOREIGN_TOOLS) if is_command(text) else None
    if find_tool is None:
        return None
    tool: tuple[list[str], list[str]] | None = find_tool(text, flags_of_tools())
    return tool


def flags_of_tools() -> dict[str, set[str]]:
    """Tool -> its flags, in all spellings."""
    from toolkit.config.reading.tool import ToolConfig, tool_parser

    extensions = discover()
    known = {}
    for uid in extensions.tools():
        model = extensions.find_command(uid)
        if model is not None and issubclass(model, ToolConfig):
            known[uid] = set(
                tool_parser(uid, model, model.positional)._option_string_actions
            )
    return known


def completion_parser() -> argparse.ArgumentParser:
    from toolkit.completion import SHELLS

    parser = argparse.ArgumentParser(
        prog=f"{COMMAND} completion",
        description=f"Prints what completes the words of '{NAME.lower()}' in a shell: docs/quickstart.md",
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser


def print_completion(shell: str) -> int:
    from toolkit.completion import JOBS, script

    of_jobs = set(make_parser(())._option_string_actions)
    flags = {
        tool: sorted(flag for flag in known if re.fullmatch(r"--[a-z-]+", flag))
        for tool, known in {**flags_of_tools(), JOBS: of_jobs}.items()
    }
    print(script(shell, {**discover().tools(), **OWN_TOOLS}, flags))
    return EXIT_DONE


def print_tool(words: Sequence[str], notes: Sequence[str]) -> None:
    print(
        "\n".join(
            [*(f"# {note}" for note in notes), *([command(*words)] if words else [])]
        )
    )


def moved_folders(pairs: Sequence[str]) -> dict[str, str]:
    """Folder -> where it is now, of the texts `OLD=NEW`. Raises UserError for any
    other."""
    for pair in pairs:
        if not all(pair.partition("=")):
            raise UserError(f"--map {pair}: write OLD=NEW, two folders.")
    return {old: new for old, _, new in (pair.partition("=") for pair in pairs)}


def dispatch_logged(arguments: argparse.Namespace) -> int:
    """`dispatch`, with a copy of all output (of a failure too) in the file of --log."""
    env = read_distributed_env()
    distributed.mute_nonzero_ranks(env)
    is_copied = arguments.log and env.is_main_process
    with log.tee_output(Path(arguments.log)) if is_copied else nullcontext():
        return exit.run_with_exit_code(dispatch, arguments)


def dispatch(arguments: argparse.Namespace) -> int:
    env = read_distributed_env()
    tool = None
    given = arguments.configs[0] if len(arguments.configs) == 1 else None
    # one that is missing is said where it is read
    if given and is_config(given):
        tool = foreign_tool(text_of(find_config(given)))
    if tool:
        words, notes = tool
        print_tool(words, notes)
        return run_tool(words) if words and not arguments.dry_run else EXIT_DONE
    if (
        len(arguments.configs) == 1
        and not arguments.dry_run
        and len(arguments.variants) <= 1
    ):
        return run_to_its_end(arguments, env)
    if not env.is_main_process:
        return EXIT_DONE  # rank 0 prints what is only displayed
    signals.install()  # a KeyboardInterrupt from here on is not the user's
    if arguments.list_extensions:
        found = discover()
        print(json.dumps(found.to_json()) if arguments.json else found.render())
        return EXIT_DONE
    if arguments.print_schema:
        return print_schema()
    if arguments.dry_run:
        return dry_run(arguments)
    if not env.is_single_process:
        count = max(len(arguments.variants), len(arguments.configs))
        raise UserError(
            f"{count} runs for {env.world_size} processes: start them one after "
            "another."
        )
    return run_sweep(arguments) if arguments.variants[1:] else run_series(arguments)


def run_to_its_end(arguments: argparse.Namespace, env: DistributedEnv) -> int:
    """`run_job`; with --json a line of JSON says how it ended."""
    read: list[JobConfig] = []
    code, error = exit.code_and_error(run_job, arguments, env, read)
    if arguments.json and env.is_main_process:
        print_end(arguments.configs[0], next(iter(read), None), code, error)
    return code


def print_end(
    argument: str | None,
    config: JobConfig | None,
    code: int,
    error: BaseException | None,
) -> None:
    from jobs.as_json import end_of_run

    print(json.dumps(end_of_run(str(argument), config, code, error)), flush=True)


def run_job(
    arguments: argparse.Namespace, env: DistributedEnv, read: list[JobConfig]
) -> int:
    """Runs one config in this process; as one rank of it where there are several. read:
    gets the config."""
    log.is_verbose = arguments.verbose
    signals.install(quiet=not env.is_main_process)
    if not env.is_single_process:
        signals.stop_with_parent()
    # a signal must not interrupt heavy imports
    with signals.defer_signals() as request:
        process_group = distributed.rendezvous_processes(env)
    request.check()
    with process_group.fail_together(exit.report):
        options = JobOptions(
            arguments.restart, arguments.allow_change, arguments.restart_from
        )
        with collection_paused():
            extensions = discover()
            config = load(
                arguments.configs[0],
                arguments,
                extensions,
                warn=env.is_main_process,
                variant=next(iter(arguments.variants), None),
            )
            read.append(config)
            if len(config.processes) > 1 and env.is_main_process:
                plan_before_the_run(config, arguments)
        return run_processes(config, extensions, options, process_group)


def plan_before_the_run(
    config: JobConfig,
    arguments: argparse.Namespace,
    earlier_outputs: frozenset[Path] = frozenset(),
) -> frozenset[Path]:
    """`check_job` with the options of the command line: what waits for something that
    trains is planned first."""
    from jobs.dry_run import check_job

    options = arguments.restart, arguments.allow_change, arguments.restart_from
    with redirect_stdout(sys.stderr):  # extensions may print
        return check_job(config, *options, earlier_outputs)


def run_series(arguments: argparse.Namespace) -> int:
    """Runs several configs, each in its own interpreter; every child appends to the
    same log. All of them are read, checked and planned before the first one runs."""
    from jobs.dry_run import claim_folders

    extensions = discover()
    outputs: frozenset[Path] = frozenset()
    owners: dict[Path, Path] = {}

    def check(argument: str) -> int:
        nonlocal outputs
        path = find_config(argument)
        # a pipe can be read only once; a tool has no plan
        if not path.is_file() or foreign_tool(text_of(path)):
            return EXIT_DONE
        with collection_paused():
            config = load(
                argument, arguments, extensions, warn=False, earlier_outputs=outputs
            )
            claim_folders(config, owners)
            outputs |= plan_before_the_run(config, arguments, outputs)
        return EXIT_DONE

    runner = multi_run.ChildRunner(child_command(arguments))
    guarded = partial(checked, arguments, check)
    return multi_run.run_series(
        arguments.configs, runner, recover=arguments.recover, check=guarded
    )


def checked(
    arguments: argparse.Namespace, check: Callable[[str], int], word: str
) -> int:
    """The exit code of a check. With --json a job that is refused has ended."""
    code, error = exit.code_and_error(check, word)
    if arguments.json and error:
        print_end(
            arguments.configs[0] if arguments.variants else word, None, code, error
        )
    return code


def child_command(arguments: argparse.Namespace) -> list[str]:
    """The program, with the options that hold for every run of a series."""
    command = [sys.executable, str(Path(__file__).resolve())]
    if arguments.log:
        command += ["--log", arguments.log]
    for flag, pairs in (("--map", arguments.map), ("--set", arguments.set)):
        command += [word for pair in pairs for word in (flag, pair)]
    for flag in ("--restart", "--allow-change", "--json", "--verbose"):
        if getattr(arguments, flag[2:].replace("-", "_")):
            command.append(flag)
    return command


def run_sweep(arguments: argparse.Namespace) -> int:
    """Runs a config with each seed and swept value, in its own interpreter, and prints
    how the runs compare. All are checked first."""
    from jobs import sweep

    extensions = discover()
    argument = arguments.configs[0]
    variants = {str(variant): variant for variant in arguments.variants}
    folders: dict[sweep.Variant, list[Path]] = {}

    def check(label: str) -> int:
        variant = variants[label]
        with collection_paused():
            config = load(
                argument, arguments, extensions, warn=not folders, variant=variant
            )
            plan_before_the_run(config, arguments)
        folders[variant] = sweep.run_folders(config)
        return EXIT_DONE

    command = child_command(arguments)
    for flag, given in (
        ("--name", arguments.name),
        ("--restart-from", arguments.restart_from),
    ):
        command += [flag, given] if given else []
    runner = multi_run.ChildRunner(command)
    guarded = partial(checked, arguments, check)

    def run_one(label: str) -> int:
        if not arguments.json:
            print(label, flush=True)
        return runner(argument, *variants[label].flags())

    code = multi_run.run_series(
        list(variants), run_one, recover=arguments.recover, check=guarded
    )
    if folders and (arguments.recover or len(folders) == len(variants)):
        if arguments.json:
            print(json.dumps(sweep.comparison(folders)), flush=True)
        else:
            print("\n".join(sweep.compared(folders)))
    return code


def dry_run(arguments: argparse.Namespace) -> int:
    """Checks the configs and prints what they would do: text, or one JSON object with
    the errors (a list for several)."""
    sys.dont_write_bytecode = (
        True  # importing an extension would otherwise write next to it
    )
    output = sys.stdout
    plans: list[JobPlan] = []
    owners: dict[Path, Path] = {}
    entries: list[dict[str, Any]] = []
    configs = arguments.configs * len(arguments.variants or (0,))
    variants = iter(arguments.variants or [None] * len(configs))

    def plan_one(argument: str) -> int:
        from jobs.dry_run import claim_folders, plan_job

        earlier = frozenset(chain.from_iterable(plan.outputs for plan in plans))
        variant = next(variants)
        config = load(
            argument, arguments, extensions, earlier_outputs=earlier, variant=variant
        )
        claim_folders(config, owners)
        options = (
            arguments.restart,
            arguments.allow_change,
            arguments.restart_from,
            arguments.memory,
        )
        plans.append(plan_job(config, *options, earlier, arguments.card or ""))
        if not arguments.json:
            plan = plans[-1].render if arguments.verbose else plans[-1].summary
            print(
                log.wrapped(log.escape_controls(plan()), output),
                file=output,
            )
        return EXIT_DONE

    def plan_as_json(argument: str) -> int:
        from jobs.as_json import faults

        code, error = exit.code_and_error(plan_one, argument)
        entry = {} if error else plans[-1].to_json()
        file = str(argument)
        entries.append({"file": file, **entry, "errors": faults(error, file)})
        return code

    # only the plans go to standard output
    with redirect_stdout(sys.stderr), collection_paused():
        extensions = discover()
        one = partial(exit.run_with_exit_code, plan_one)
        code = multi_run.run_series(
            configs,
            plan_as_json if arguments.json else one,
            recover=arguments.recover or arguments.json,
        )
    if arguments.json:
        print(json.dumps(entries if len(configs) > 1 else entries[0], indent=2))
    return code


def print_schema() -> int:
    from toolkit.config.reading.reference import schema, schema_text

    with redirect_stdout(sys.stderr):
        text = schema_text(schema(discover().configs()))
    print(text)
    return EXIT_DONE


def load(
    argument: str | None,
    arguments: argparse.Namespace,
    extensions: ExtensionTable,
    warn: bool = True,
    earlier_outputs: frozenset[Path] = frozenset(),
    variant: Variant | None = None,
) -> JobConfig:
    """Finds, reads and checks one config; its warnings go to standard error, unless
    `warn` is false.

    argument: the file; None: the flags are all there is. earlier_outputs: what configs
    in front of it write. variant: which run of `--seeds` and `--sweep`.
    """
    from toolkit.config import load_job
    from toolkit.config.reading.changes import read_changes
    from toolkit.config.reading.foreign import COMMAND_LINE

    changes = read_changes(arguments.set)
    path = COMMAND_LINE if argument is None else find_config(argument)
    of_examples = moved_examples() if "config/examples" in text_of(Path(path)) else {}
    config = load_job(
        path,
        extensions.find_config,
        name=arguments.name,
        flags=arguments.flags,
        moved=of_examples | arguments.moved,
        earlier_outputs=earlier_outputs,
        changes=(*changes, *variant.changes) if variant else changes,
        suffix=variant.suffix if variant else "",
    )
    if warn:
        print_warnings(config)
    # the plan has them
    for note in config.notes if warn and not arguments.dry_run else ():
        exit.print_error(note)
    return config


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, checked. Ends the program with a message for a mistake in
    it."""
    parser = make_parser(argv)
    for word in argv:
        if word.startswith("--") and word[2:] in OTHER_FLAGS:
            parser.error(f"{word}: {OTHER_FLAGS[word[2:]]}")
    try:
        split_flags = find_object(FOREIGN_FLAGS)
        flags = {}
        rest = argv
        if split_flags:
            flags, rest = split_flags(argv, list(parser._option_string_actions))
        # Intermixed: flags may stand between two configs.
        arguments = parser.parse_intermixed_args(rest)
        arguments.flags = flags
        arguments.moved = moved_folders(arguments.map)
        check_arguments(arguments, parser)
    except UserError as error:
        parser.error(str(error))
    return arguments


def make_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The options of the program. argv: with -h and --help, the tools are listed too;
    -h leaves out the rare options."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        usage=f"{COMMAND} [options] CONFIG ...\n       {COMMAND} TOOL [options]",
        description="Runs jobs: YAML, JSON or JSONC files that list processes. Runs tools: see below.",
        epilog=epilog() if {"-h", "--help"} & set(argv) else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.color = False  # type: ignore[attr-defined]  # Python 3.14: the streams let no escape sequence through
    add = parser.add_argument
    add("-V", "--version", action="version", version=f"{NAME} {VERSION}")
    add(
        "configs",
        nargs="*",
        metavar="CONFIG",
        help="a file, or the name of one in config/",
    )
    add("--config", metavar="CONFIG", help="the same as CONFIG")
    add = parser.add_argument_group("before a run").add_argument
    add(
        "--dry-run",
        action="store_true",
        help="check, scan the datasets, print the plan; write nothing",
    )
    add("-v", "--verbose", action="store_true", help="print the whole plan")
    add(
        "--card",
        metavar="NAME",
        help="with --dry-run: the time on this card, such as 'RTX 4070', or GB",
    )
    add(
        "--memory",
        action="store_true",
        help="with --dry-run: measure the memory, where the trainer can",
    )
    add = parser.add_argument_group("other values").add_argument
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value for a key of the job, such as train.lr=2e-4; may be repeated",
    )
    add(
        "--sweep",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUES",
        help="run the job once with each value: train.lr=1e-4,2e-4 network.linear=8,16",
    )
    add(
        "--seeds",
        metavar="1,2,3",
        help="run the job once with each training_seed, in folders NAME_seed1, ...",
    )
    add("-n", "--name", metavar="NAME", help="replaces config.name")
    _add_map(add)
    add = parser.add_argument_group("a run that exists").add_argument
    add(
        "--restart",
        action="store_true",
        help="run finished work again; its old run, or one that cannot be resumed, is moved aside",
    )
    add(
        "--restart-from",
        metavar="PROCESS",
        help="start over from this process; old results are moved aside",
    )
    add(
        "--allow-change",
        action="store_true",
        help="resume even if the job differs from the saved one",
    )
    add = parser.add_argument_group("several jobs, and scripts").add_argument
    add(
        "-r",
        "--recover",
        action="store_true",
        help="continue with the next config after a failure",
    )
    add("-l", "--log", metavar="FILE", help="appends a copy of all output to FILE")
    add(
        "--json",
        action="store_true",
        help="print the plan with its errors, the extensions, or the end of a run as JSON",
    )
    add("--print-schema", action="store_true", help="print the JSON Schema of a config")
    add = parser.add_argument_group("extensions").add_argument
    add(
        "--list-extensions",
        action="store_true",
        help="print the process types that were found",
    )
    add(  # `without_parts` has taken it out of the arguments; this is its line of the help
        "--without",
        action="append",
        default=[],
        metavar="NAME",
        help="do as if this extension were not installed: its type, or its folder; may be repeated",
    )
    if is_brief := "-h" in argv:
        parser.epilog = f"{parser.epilog}\nAll options: {COMMAND} --help"
    for action in parser._actions if is_brief else ():
        if action.dest not in EVERYDAY:
            action.help = argparse.SUPPRESS
    if is_present(HELP_ON_FLAGS) and not is_brief:
        parser.add_argument_group(*load_object(HELP_ON_FLAGS))
    # --dry_run is --dry-run; the help shows one
    for flag, action in list(parser._option_string_actions.items()):
        parser._option_string_actions.setdefault(
            flag[:2] + flag[2:].replace("-", "_"), action
        )
    return parser


def is_job(word: str) -> bool:
    """Whether a word names a job, if only by its ending."""
    return is_config(word) or ("=" not in word and word.endswith(CONFIG_SUFFIXES))


def check_arguments(
    arguments: argparse.Namespace, parser: argparse.ArgumentParser
) -> None:
    """Completes the arguments, and reports those that do not go together. Raises
    UserError, or ends the program."""
    # a name of a config may stand behind the last of them
    arguments.configs += filter(is_job, arguments.sweep)
    arguments.sweep = [word for word in arguments.sweep if not is_job(word)]
    if arguments.set or arguments.sweep:
        from toolkit.config.reading.changes import parted_values

        rest = [word for word in arguments.configs if not is_job(word)]
        is_known = arguments.set and rest != arguments.configs
        of_set = [*arguments.set, *rest] if is_known else []
        for flag, words in (("--set", of_set), ("--sweep", arguments.sweep)):
            if parted := parted_values(words, flag):
                parser.error(parted)
    for word in arguments.configs:
        jobs = re.split(r"[,;:\s]+", " ".join(arguments.configs).strip(",;: "))
        if not is_config(word) and all(map(is_config, jobs)):
            parser.error(f"{word}: a space is between jobs. Write: {shlex.join(jobs)}")
        match = re.fullmatch(r"(?:[\w*]+[.\[\]]+)*\w+=.*", word, re.DOTALL)
        if match and not is_config(word):
            parser.error(
                f"{word}: stands behind --set. Write '--set {shlex.quote(word)}'."
            )
    if arguments.config:
        arguments.configs.append(arguments.config)
    if arguments.flags and not arguments.configs:
        arguments.configs = [None]
    is_alone = arguments.list_extensions or arguments.print_schema
    if is_alone is bool(arguments.configs):  # beside a job the job would be run
        parser.error(
            "--list-extensions and --print-schema stand alone. Leave the job out."
            if is_alone
            else "no config file given, for example config/examples/quickstart.yaml"
        )
    ours = [
        flag
        for flag in ("name", "restart-from")
        if getattr(arguments, flag.replace("-", "_"))
    ]
    if len(arguments.configs) > 1:
        for flag in (*arguments.flags, *ours):
            parser.error(f"--{flag} with several configs: give one config.")
    for flag in ("memory", "card"):
        if getattr(arguments, flag) and not arguments.dry_run:
            parser.error(f"--{flag} requires --dry-run")
    arguments.variants = ()
    if arguments.seeds is not None or arguments.sweep:
        if len(arguments.configs) != 1 or arguments.configs[0] is None:
            parser.error(
                "--seeds and --sweep require one config, and commas between the values: JOB.yaml --seeds 1,2,3"
            )
        from jobs.sweep import variants

        arguments.variants = variants(arguments.sweep, arguments.seeds, arguments.set)
    if arguments.card:
        from toolkit.plan.cards import asked_card

        asked_card(arguments.card)


def epilog() -> str:
    """The end of --help: what the tools are for, and the exit codes."""
    tools = discover().tools()
    width = max(map(len, tools), default=0)
    lines = [
        f"Tools ({COMMAND} TOOL --help shows the flags of one; documentation: docs/index.md)"
    ]
    for stage, uids in discover().stages().items():
        lines += ["", f"{stage}:", *(f"  {uid:{width}}  {tools[uid]}" for uid in uids)]
        if stage == FIRST_STAGE:
            lines += (f"  {uid:{width}}  {what}" for uid, what in OWN_TOOLS.items())
    codes = "Exit codes: 0 done, 1 failure, 2 mistake in the input, 130 Ctrl-C, 75 SIGTERM or SIGHUP."
    return "\n".join([*lines, "", codes])


def prepare_streams() -> None:
    """Makes the streams line-buffered, also in a pipe, and escapes what cannot be
    encoded; opens closed ones.

    Secrets are redacted; secrets of the environment from the start.
    """
    log.quiet_libraries()
    log.open_closed_streams()
    if not faulthandler.is_enabled():
        faulthandler.enable(2)  # for signals that end a process without a word
    redact.remember_environment(os.environ)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    log.redact_streams()


def console() -> None:
    """The command `atelier` of an installation."""
    distributed.exit_process(main())


if __name__ == "__main__":
    console()
