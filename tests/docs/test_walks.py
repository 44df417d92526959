"""Every block of README and docs: commands and jobs are run here, page by page, in the
order in which one reads them.

A tiny model stands for the published ones, photographs for one's own; jobs have two
steps and small sizes. Blocks that another test runs or plans, or that nobody can run here,
stand in a table.
"""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT
from tests.docs.pages import (
    EXAMPLE,
    PAGES,
    PHOTOS,
    Block,
    blocks,
    lora_files,
    put_photos,
    whole_job,
)
from tests.docs.test_yaml_blocks import YAML
from tests.faults.nursery import Child
from tests.processes import free_port
from toolkit.errors import EXIT_SIGTERM

EDIT = "Qwen/Qwen-Image-Edit-2509"
PYTHON = ".venv/bin/python"

DIFFS = "tests/docs/test_extending.py::test_the_diffs_make_what_they_add_usable"
LORA = "tests/docs/test_use_your_lora.py::test_every_block_runs_as_one_reads"
QUICKSTART = "tests/config/test_examples_quickstart.py::test_it_prints_and_leaves_what_its_page_shows"
ONE_FILE = "tests/toolkit/models/test_beside.py::test_a_transformers_file_gives_the_bits_of_its_folder"

MESSAGES = "tests/docs/test_troubleshooting.py::"

ELSEWHERE = {
    (
        "docs/architecture.md",
        "flowchart",
    ): "tests/docs/test_reference.py::test_the_generated_pages_are_fresh",
    (
        "docs/config.md",
        "",
    ): "tests/docs/test_reference.py::test_a_section_shows_an_example_that_it_accepts",
    ("docs/coming_from_fluxflow.md", "config/examples/fluxflow-train"): (
        "tests/faults/test_fluxflow_guide.py::test_the_commands_of_the_page_are_planned"
    ),
    ("docs/callbacks.md", "callbacks:"): (
        "tests/extensions/hooks/test_notices.py::test_the_block_of_the_page_is_taken"
    ),
    ("docs/extending.md", ""): DIFFS,
    (
        "docs/extensions.md",
        "",
    ): "tests/docs/test_extensions.py::test_the_trainer_with_a_loss_of_its_own_trains",
    ("docs/stable.md", ""): (
        "tests/docs/test_extensions.py::test_the_test_of_the_page_on_what_is_stable_passes"
    ),
    ("docs/write_an_extension.md", ""): (
        "tests/docs/test_write_an_extension.py::test_the_tutorial_runs_word_by_word"
    ),
    ("docs/models.md", "datasets:\n  - folder_path: datasets/posters"): (
        "tests/docs/test_yaml_blocks.py::test_the_block_of_layers_is_a_job"
    ),
    ("docs/memory.md", "memory: peak"): (
        "tests/toolkit/plan/test_memory_plan.py::test_where_it_does_not_fit_the_changes_are_listed_in_their_order"
    ),
    ("docs/models.md", "model:\n  name_or_path: ~/ComfyUI"): ONE_FILE,
    **{
        (
            "docs/troubleshooting.md",
            begin,
        ): f"{MESSAGES}test_the_wrong_job_prints_it_and_the_right_one_does_not"
        for begin in (
            "config/my_char",
            "without caption",
            "warning: lr:",
            "datasets/after",
        )
    },
    **{
        (
            "docs/troubleshooting.md",
            begin,
        ): f"{MESSAGES}test_a_message_about_files_is_printed"
        for begin in ("datasets/damaged", "datasets/latin", "datasets/twice")
    },
    (
        "docs/times.md",
        "time: about",
    ): "tests/docs/test_times.py::test_the_line_of_the_page_is_one_of_a_plan",
    ("docs/quickstart.md", "quickstart (sd_trainer)"): QUICKSTART,
    ("docs/quickstart.md", "config/my_char.yaml:14:9"): (
        "tests/docs/test_guides_and_program.py::test_mistakes_are_reported_as_the_quickstart_says"
    ),
    ("docs/quickstart.md", "output/"): QUICKSTART,
    (
        "docs/saving.md",
        "a portrait",
    ): "tests/docs/test_guides_and_program.py::test_the_prompt_with_flags_is_read",
    (
        "docs/many_jobs.md",
        "name: lora",
    ): "tests/docs/test_many_jobs.py::test_the_workflow_of_ci_passes_and_fails_where_it_should",
    (
        "docs/many_jobs.md",
        "import atelier",
    ): "tests/docs/test_many_jobs.py::test_the_block_of_python_trains",
    ("docs/use_your_lora.md", ""): LORA,
    ("docs/while_it_trains.md", "downloading 12 of 58 GB"): (
        "tests/toolkit/files/test_now.py::test_the_lines_of_the_page_are_those_of_the_program"
    ),
}
"""Page, and how the block begins (empty: any block) -> the test that runs it."""

NOT_RUN = {
    "python3 -m venv": "makes the environment that tests run in",
    ".venv/bin/pip": "installs packages",
    "grep -v '^torch==' requirements.txt": "installs packages",
    "pip install": "installs packages",
    ".venv/bin/ruff": "checks the program",
    "{ .venv/bin/mypy &": "checks the program, beside the tests themselves",
    "wait $!": "waits for that check",
    "python -m pytest": "the tests themselves",
    "hf download": "downloads from the hub",
    ".venv/bin/hf download": "downloads from the hub",
    'if [ "$ATELIER_EXIT_CODE" = 0 ]; then rsync': "copies to another machine",
    "accelerate launch --multi_gpu": "starts one process on a CPU, as the page says",
    "python launch.py --nnodes 2": "takes two machines",
    "export WANDB_API_KEY": "an account",
    ".venv/bin/python run.py queue --output runs stop": "stops what runs: tests/extensions/tools/ui/test_queue.py does",
    ".venv/bin/python run.py queue run": "runs what waits: tests/extensions/tools/ui/test_queue.py does, and the page",
    ".venv/bin/python run.py config/night/": "several machines: tests/docs/test_many_jobs.py runs it in two processes",
    "sbatch": "a cluster: tests/docker/test_many.py reads the file and runs the script",
    "kubectl": "a cluster: tests/docker/test_many.py reads the file",
    "while read -r job": "clouds: tests/docker/test_many.py reads the files",
    "tensorboard --logdir": "another program, which serves until it is stopped",
}
"""How commands begin that CI cannot run -> why."""

ONCE = {
    "run.py config/examples/quickstart.yaml": "README.md",
    "run.py ui": "docs/web.md",
}
"""Commands that several pages have, and whose results none of them uses -> the page
that runs them."""

SHOWN = {
    ("docs/before_and_after_pairs.md", "datasets/"): "a layout of folders",
    ("docs/many_jobs.md", "config/my_char.yaml --set"): "a list of jobs",
    ("docs/first_character.md", "datasets/"): "a layout of folders",
    ("docs/first_character.md", "[trigger], close portrait"): "a caption",
}
"""Page, and how a block begins that there is nothing to run of -> what it is."""

PRINTED = {"docs/datasets.md", "docs/edits_that_shift.md", "docs/when_to_stop.md"}
"""Pages whose text blocks are what their own commands print, but for numbers."""

SHORTER = (
    (r"steps: (2000|2500|3000|20000|240|300)\b", "steps: 2"),
    (r"(save_every|sample_every|every): \d+", r"\1: 2"),
    (r"sample_steps: \d+", "sample_steps: 1"),
    (r"resolution: (\[(1024|512)\]|1024|512)", "resolution: 64"),
    (r"(width|height): \d{3,4}", r"\1: 64"),
    (r"match_target_res: false", "match_target_res: true"),
    (r"count: \d+", "count: 4"),
    (r"edits_of_two: \d+", "edits_of_two: 12"),
    (r"blocks_to_swap: \d+", "blocks_to_swap: 1"),
    (r"device: cuda:0", "device: cpu"),
)
"""Edits of a job before it is trained: nothing but its length and sizes, and its
device."""

FASTER = (r"dtype: bf16", "dtype: fp32")
"""A number type that is fast on a CPU, where the job does not need the other one."""

SMALL = {"width": 64, "height": 64, "sample_steps": 1}
SHORTER_FLAGS = {
    "best": ("--images", 3),
    "caption": ("--help",),  # needs a model that captions
}
"""Flags that a tool gets besides."""

STANDS_FOR = {
    "FOLDER": "datasets/my_char",
    "JOB": "job.yaml",
    "MODEL": EDIT,
    "python src/musubi_tuner/qwen_image_train_network.py --dit ...": (
        f"python src/musubi_tuner/qwen_image_train_network.py --dit {EDIT}/transformer --dataset_config data.toml "
        "--network_module networks.lora_qwen_image --output_dir out --output_name pasted"
    ),
}
"""Placeholder in a command -> what a person would have there."""

JOBS = {
    "docs/architecture.md": "config/my_char.yaml",
    "docs/datasets.md": "job.yaml",
    "docs/many_jobs.md": "config/my_char.yaml",
    "docs/memory.md": "job.yaml",
    "docs/moving_from_ai_toolkit.md": "config/my_job.yaml",
    "docs/multi_gpu.md": "config/my_char.yaml",
    "docs/troubleshooting.md": "config/my_char.yaml",
    "docs/web.md": "config/my_char.yaml",
    "docs/when_to_stop.md": "job.yaml",
}
"""Page -> the job that its reader has, which is the example."""

RUNS = {
    "docs/lora_does_nothing.md": ("my_char",),
    "docs/loras.md": ("my_char",),
    "docs/models.md": ("my_char",),
    "docs/two_characters.md": ("family",),
    "docs/when_to_stop.md": ("my_char", "family"),
}
"""Page -> the runs in `output/` that its reader has."""

TABLES: dict[str, str] = {}
"""Page -> the file that its JSON is."""

TOGETHER: tuple[str, ...] = ()
"""Pages whose YAML blocks are added to one job; elsewhere each changes the example."""

CHARACTERS = ("pipo", "momo", "lulu")
CLIP = "openai/clip-vit-large-patch14"
PATCH = (14, 28)
"""Pixels of a patch of the CLIP, and of its images."""

RUN = """
job: extension
config:
  name: NAME
  process:
    - type: sd_trainer
      training_folder: output
      network: {linear: 4}
      save: {save_every: 1}
      datasets: [DATASETS]
      train: {steps: 2, lr: 0.01, dtype: fp32}
      model: {name_or_path: MODEL}
      sample: {samples: [{prompt: a cup, width: 64, height: 64, sample_steps: 1}], sample_every: 0}
""".replace(
    "DATASETS",
    ", ".join(
        f"{{folder_path: datasets/{name}, trigger_word: {name}, resolution: 64}}"
        for name in CHARACTERS
    ),
)


MUSUBI = f"""\
dit = "{EDIT}/transformer"
dataset_config = "data.toml"
network_module = "networks.lora_qwen_image"
output_dir = "out"
output_name = "my_lora"
max_train_steps = 2
"""
MUSUBI_DATA = """\
[general]
resolution = [64, 64]
caption_extension = ".txt"

[[datasets]]
image_directory = "datasets/my_char"
"""
MUSUBI_COMMAND = f"""\
accelerate launch src/musubi_tuner/qwen_image_train_network.py --dit {EDIT}/transformer --dataset_config data.toml \\
  --network_module networks.lora_qwen_image --output_dir out --output_name of_script --max_train_steps 2
"""


def commands(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield from (command.strip() for command in line.split("&&"))


def is_one_of(
    block: Block, table: dict[tuple[str, str], str]
) -> tuple[str, str] | None:
    """The entry of a table that names a block."""
    return next(
        (
            key
            for key in table
            if key[0] == block.page and block.text.startswith(key[1])
        ),
        None,
    )


def read(page: str) -> list[Block]:
    """The blocks of a page that are run here, and the commands within its sentences, in
    their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    inline = [
        Block(
            page,
            text[: match.start()].count("\n") + 1,
            "bash",
            " ".join(match[1].split()),
        )
        for match in re.finditer(r"`(\.venv/bin/python run\.py [^`.]+[^`]+)`", text)
    ]
    own = [
        each
        for each in blocks(page)
        if not is_one_of(each, ELSEWHERE)
        and not is_one_of(each, SHOWN)
        # planned there; the text of a page may be what its jobs print
        and (page in PRINTED or each not in YAML)
    ]
    return sorted([*own, *inline], key=lambda block: block.line)


def shorten(job: Path) -> None:
    text = job.read_text(encoding="utf-8")
    for pattern, replacement in (
        SHORTER if "full_bf16: true" in text else (*SHORTER, FASTER)
    ):
        text = re.sub(pattern, replacement, text)
    job.write_text(text, encoding="utf-8")


class Walk:
    """Somebody who reads a page in a clone, and does what it says."""

    def __init__(
        self,
        place: Path,
        run_py: Callable,
        start_py: Callable[..., Child],
        run_ranks: Callable,
    ) -> None:
        self.place, self.run_py, self.start_py, self.run_ranks = (
            place,
            run_py,
            start_py,
            run_ranks,
        )
        self.printed = ""
        self.job: Block | None = None

    def do(self, block: Block) -> None:
        match block.language:
            case "bash":
                for command in commands(block.text):
                    page = ONCE.get(command.removeprefix(f"{PYTHON} "), block.page)
                    if command and not command.startswith(("#", *NOT_RUN)):
                        if page == block.page:
                            self.run(command)
            case "yaml":
                self.train(block)
            case "json":
                self.write_table(block)
            case "text":
                assert block.page in PRINTED, block
            case _:
                raise AssertionError(
                    f"{block}: no test runs this. Add it to a table of this file."
                )

    def write_table(self, block: Block) -> None:
        """A table of images, and the images that it names."""
        table = self.place / TABLES[block.page]
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(block.text, encoding="utf-8")
        for name in re.findall(r'"([^"]+\.png)"', block.text):
            Image.effect_noise((64, 64), 40).save(table.parent / name)

    def train(self, block: Block) -> None:
        if self.job and block.page in TOGETHER:
            block = Block(block.page, block.line, "yaml", self.job.text + block.text)
        self.job = block
        job = whole_job(block)
        put_photos(job, self.place)
        process = job["config"]["process"][0]
        for name in lora_files(job):
            (self.place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(
                self.place / "output" / "my_char" / "my_char.safetensors",
                self.place / name,
            )
        for dataset in process["datasets"]:
            dataset["resolution"] = 64
        process["sample"] |= SMALL
        if "prompt" not in block.text:
            # with a control image
            process["sample"]["samples"] = process["sample"]["samples"][-1:]
        process["model"].setdefault("model_kwargs", {})["match_target_res"] = True
        job["config"]["name"] = f"block_{block.line}"
        file = self.place / f"block_{block.line}.yaml"
        file.write_text(
            yaml.safe_dump(job, default_flow_style=None, sort_keys=False),
            encoding="utf-8",
        )
        shorten(file)
        self.ends_well(block.text, 0, file.name, "-v")

    def run(self, command: str) -> None:
        words = [
            STANDS_FOR.get(word, word) for word in shlex.split(command, comments=True)
        ]
        environment = {}
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        if words[0] == "cp":
            shutil.copy(*words[1:])
        elif words[0] == "torchrun":
            self.launch(words[1:])
        else:
            assert words[:2] == [PYTHON, "run.py"], command
            tool, *_ = arguments = words[2:]
            if tool == "ui":
                self.serve(arguments, environment)
                return
            for name in arguments:
                if name.endswith(".yaml") and (self.place / name).exists():
                    shorten(self.place / name)
            # Lint finds that the photographs are small.
            self.ends_well(
                command,
                1 if tool == "lint" else 0,
                *arguments,
                *SHORTER_FLAGS.get(tool, ()),
            )

    def ends_well(self, asked: str, code: int, *arguments: object) -> None:
        done = self.run_py(*arguments)
        assert done.returncode == code, (
            asked,
            done.stderr[-2000:],
            done.stdout[-2000:],
        )
        self.printed += done.stdout + done.stderr

    def serve(self, arguments: list[str], environment: dict[str, str]) -> None:
        port = free_port()
        child = self.start_py(*arguments, "--port", port, env=environment)
        child.wait_until(lambda: answers(f"http://127.0.0.1:{port}/"))
        child.send(signal.SIGTERM)
        assert child.wait() == EXIT_SIGTERM, child.output

    def launch(self, words: list[str]) -> None:
        flag, processes, script, job = words
        assert (flag, script) == ("--nproc-per-node", "run.py"), words
        shorten(self.place / job)
        self.run_ranks(int(processes), job)

    def shows(self, block: Block) -> None:
        """Each line of a block was printed, with other numbers; `...` stands for
        anything."""
        for line in filter(None, block.text.splitlines()):
            pattern = ".*".join(map(re.escape, line.strip().split("...")))
            pattern = re.sub(r"(\\[-+])?\d[\d,]*(\\\.\d+)?", r"[-+]?[\\d,.]+", pattern)
            spaced = re.sub(r"(\\ )+", r"\\s+", pattern)
            assert re.search(rf"^\s*{spaced}", self.printed, re.MULTILINE), (
                line,
                self.printed,
            )


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except HTTPError:
        return True  # it asks for a token
    except URLError:
        return False
    return True


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the models of the hub that pages name, and a cache for
    all pages; `prepare` adds models that few of them name."""
    folder = tmp_path_factory.mktemp("models")
    (folder / EDIT).parent.mkdir()
    (folder / EDIT).symlink_to(tiny_model)
    (folder / CLIP).parent.mkdir()
    (folder / "output" / "_cache").mkdir(parents=True)
    return folder


def write_clip(folder: Path) -> None:
    """A CLIP with random weights, whose tokenizer knows letters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {**small, "vocab_size": 54, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**small, "image_size": PATCH[1], "patch_size": PATCH[0]}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    ).save_pretrained(folder)
    letters = [
        f"{letter}{end}"
        for letter in "abcdefghijklmnopqrstuvwxyz"
        for end in ("", "</w>")
    ]
    words = ["<|startoftext|>", "<|endoftext|>", *letters]
    CLIPTokenizer(
        {word: index for index, word in enumerate(words)}, []
    ).save_pretrained(folder)


@pytest.fixture
def place(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone as far as commands read it, with the images that the guides ask for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    shutil.copytree(
        ROOT / "config", tmp_path / "config", ignore=shutil.ignore_patterns("my_*")
    )
    for folder in ("Qwen", "openai", "output/_cache"):
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        (tmp_path / folder).symlink_to(models / folder)
    (tmp_path / "kept.txt").write_text("a dog\n", encoding="utf-8")
    for folder in ("my_char", "after", "before", *CHARACTERS):
        shutil.copytree(PHOTOS / "40_photo", tmp_path / "datasets" / folder)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the runs of `RUNS`; each is trained once."""
    return tmp_path_factory.mktemp("trained")


def prepare(page: str, place: Path, trained: Path, run_py: Callable) -> None:
    """What the reader of a page has already."""
    if "family" in RUNS.get(page, ()) and not (place / CLIP).exists():
        write_clip(place / CLIP)
    for name in RUNS.get(page, ()):
        if not (trained / name).exists():
            (place / f"{name}.yaml").write_text(
                RUN.replace("NAME", name).replace("MODEL", EDIT), encoding="utf-8"
            )
            done = run_py(f"{name}.yaml")
            assert done.returncode == 0, done.stderr
            shutil.copytree(place / "output" / name, trained / name)
        shutil.copytree(trained / name, place / "output" / name, dirs_exist_ok=True)
    if page in JOBS:
        shutil.copy(place / "config" / "examples" / EXAMPLE, place / JOBS[page])
    if page == "docs/coming_from.md":
        for name, text in (
            ("job.toml", MUSUBI),
            ("data.toml", MUSUBI_DATA),
            ("train.sh", MUSUBI_COMMAND),
        ):
            (place / name).write_text(text, encoding="utf-8")
    # a result that is larger than its control image, and beside it
    if page == "docs/edits_that_shift.md":
        for file in [
            *place.glob("datasets/before/*.jpg"),
            *place.glob("datasets/after/*.jpg"),
        ]:
            Image.open(file).resize((192, 160)).save(file)
        photo = Image.open(PHOTOS / "40_photo" / "coffee.jpg").resize((384, 384))
        photo.save(place / "datasets" / "before" / "07.png")
        matrix = (0.98, 0, 2, 0, 0.98, 7)
        photo.transform(
            photo.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
        ).save(place / "datasets" / "after" / "07.png")
    if page == "docs/models.md":
        put_single_files(place)


def put_single_files(home: Path) -> None:
    """ComfyUI's files of the tiny model, as the page names them."""
    block = next(
        block for block in blocks("docs/models.md", "yaml") if "vae_path" in block.text
    )
    for part, path in re.findall(r"(\w+)_path: ~/(\S+)", block.text):
        weights = {}
        for file in (home / EDIT / part).glob("*.safetensors"):
            weights |= load_file(file)
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, home / path)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if read(page)])
def test_every_block_of_a_page_runs_in_its_order(
    page: str,
    place: Path,
    trained: Path,
    run_py: Callable,
    start_py: Callable,
    run_ranks: Callable,
) -> None:
    prepare(page, place, trained, run_py)
    walk = Walk(place, run_py, start_py, run_ranks)
    for block in read(page):
        walk.do(block)
    for block in blocks(page, "text"):
        if not is_one_of(block, ELSEWHERE) and not is_one_of(block, SHOWN):
            walk.shows(block)
    jobs = [
        block
        for block in read(page)
        if re.search(r"run\.py config/(?!examples/quick)", block.text)
        and "--dry-run" not in block.text
    ]
    assert bool(jobs) <= bool(list((place / "output").rglob("*.safetensors"))), (
        "a page trains what it says"
    )


def test_each_block_is_run_or_named_with_a_reason() -> None:
    """A block of a language that nobody runs is found, and an entry of a table that
    names nothing any more."""
    found = [block for page in PAGES for block in blocks(page)]
    unnamed = [
        block
        for block in found
        if not is_one_of(block, ELSEWHERE) and not is_one_of(block, SHOWN)
    ]
    assert [
        str(block)
        for block in unnamed
        if block.language not in ("bash", "yaml", "json", "text")
    ] == []
    assert [
        str(block)
        for block in unnamed
        if block.language == "text" and block.page not in PRINTED
    ] == []
    named = {is_one_of(block, table) for block in found for table in (ELSEWHERE, SHOWN)}
    assert {*ELSEWHERE, *SHOWN} - named == set()
    lines = [
        command
        for block in found
        if block.language == "bash"
        for command in commands(block.text)
    ]
    assert [
        begin for begin in NOT_RUN if not any(line.startswith(begin) for line in lines)
    ] == []
    given = [
        command
        for page in PAGES
        for block in read(page)
        for command in commands(block.text)
    ]
    assert [one for one in ONCE if f"{PYTHON} {one}" not in given] == []
    assert PRINTED | {*JOBS, *RUNS, *TABLES, *TOGETHER, *ONCE.values()} <= set(PAGES)


def test_tests_that_run_blocks_are_there() -> None:
    for named in ELSEWHERE.values():
        file, _, test = named.partition("::")
        assert f"def {test}" in (ROOT / file).read_text(encoding="utf-8"), named
