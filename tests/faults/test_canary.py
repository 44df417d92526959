"""Reading somebody's file runs no code: what it names, an extension beside it, and
modules in the working directory are executed by a training alone. An audit hook would
not see `import_module`; a file that the module writes does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import save_file
from starlette.routing import Mount
from starlette.testclient import TestClient

from extensions.tools.ui.app import ROUTES, make_app
from extensions.tools.ui.queue import Queue
from extensions.tools.ui.state import Ui
from tests.conftest import ROOT
from tests.extensions.tools.ui.test_guard import addresses
from tests.faults.conftest import draw_pictures
from tests.faults.nursery import Nursery
from toolkit.extension import discover
from toolkit.registry import FOREIGN_FILES

pytestmark = pytest.mark.slow

NAME = "evilmod.Opt"

CANARY = """\
import os
with open(os.environ["CANARY"], "a") as file:
    file.write(f"{__name__}\\n")
"""

JOB = {
    "type": "sd_trainer",
    "training_folder": "output",
    "device": "cpu",
    "network": {"type": "lora", "linear": 4, "linear_alpha": 4},
    "save": {"dtype": "float32", "save_every": 1},
    "datasets": [{"folder_path": "data", "resolution": 64}],
    "train": {
        "steps": 1,
        "lr": 0.01,
        "optimizer": NAME,
        "dtype": "fp32",
        "gradient_checkpointing": False,
    },
    "sample": {
        "prompts": ["a photo"],
        "width": 64,
        "height": 64,
        "sample_steps": 1,
        "sample_every": 1,
    },
    "model": {"name_or_path": "model", "model_kwargs": {"match_target_res": True}},
}

FLUXFLOW = f"""\
data: {{data_path: data}}
training:
  output_path: out
  pipeline:
    steps:
      - {{name: a, n_epochs: 1, train_vae: true, optimizers: {{vae: {{type: {NAME}, lr: 1e-4}}}}}}
"""

DIFFUSION_PIPE = f"""\
output_dir = 'runs/dogs'
dataset = 'dataset.toml'
epochs = 1
[model]
type = 'qwen_image'
diffusers_path = 'model'
dtype = 'bfloat16'
[adapter]
type = 'lora'
rank = 4
[optimizer]
type = '{NAME}'
lr = 2e-5
"""

FOREIGN = {
    "musubi": ("musubi.toml", f'dit = "model/transformer"\noptimizer_type = "{NAME}"\ndataset_config = "data.toml"\n'
               'network_module = "networks.lora_qwen_image"\noutput_name = "x"\n'),
    "kohya": (
        "kohya.sh",
        "accelerate launch qwen_image_train_network.py --dit model/transformer --dataset_config data.toml "
        f"--network_module networks.lora_qwen_image --output_name x --optimizer_type {NAME}\n",
    ),
    "diffusion_pipe": ("pipe.toml", DIFFUSION_PIPE),
    "onetrainer": ("onetrainer.json", json.dumps({"base_model_name": "model", "model_type": "QWEN", "training_method":
                   "LORA", "optimizer": {"optimizer": NAME}, "concepts": [{"path": "data"}], "concept_file_name": ""})),
    "simpletuner": ("simpletuner.json", json.dumps({"model_type": "lora", "model_family": "qwen_image",
                    "output_dir": "output/x", "data_backend_config": "data.json", "max_train_steps": 1,
                    "optimizer": NAME})),
    "diffusers": ("diffusers.sh", "accelerate launch train_dreambooth_lora_qwen_image.py --instance_data_dir=data "
                  f"--pretrained_model_name_or_path=model --optimizer={NAME} --instance_prompt=x --output_dir=o\n"),
    "diffsynth": (
        "diffsynth.sh",
        "accelerate launch examples/qwen_image/model_training/train.py --dataset_base_path data --output_path o "
        f"--customized_optimizer {NAME} --dataset_metadata_path data/table.csv --lora_base_model dit "
        '--model_id_with_origin_paths "Qwen/Qwen-Image:transformer/diffusion_pytorch_model*.safetensors,'
        'Qwen/Qwen-Image:text_encoder/model*.safetensors,Qwen/Qwen-Image:vae/diffusion_pytorch_model.safetensors"\n',
    ),
    "fluxflow": ("fluxflow.yaml", FLUXFLOW),
}  # fmt: skip
"""Program -> a file of it that names the canary where that program names an
optimizer."""

TOOLS = {
    "align": ["data", "--control-path", "data", "--output", "aligned"],
    "ara": ["RUN"],
    "best": ["RUN"],
    "cache": ["JOB"],
    "caption": ["data", "--model", "nothing"],
    "convert": ["FILE", "converted.safetensors", "--to", "comfyui"],
    "datasets": [],
    "diagrams": ["RUN"],
    "doctor": ["FILE"],
    "download": ["no owner"],
    "extract": ["--tuned", "model", "--base", "model", "extracted.safetensors"],
    "generate": ["RUN", "--prompt", "x"],
    "grid": ["RUN"],
    "inspect": ["RUN"],
    "jobs": [],
    "lint": ["JOB"],
    "merge": ["--lora", "FILE", "FILE", "--output", "merged.safetensors"],
    "new": ["a_job", "data", "--model", "model"],
    "post_hoc_ema": ["RUN", "--output", "ema.safetensors"],
    "publish": ["RUN", "--repo", "x/y", "--preview", "preview"],
    "queue": ["add", "JOB"],
    "report": ["RUN"],
    "resize": ["FILE", "resized.safetensors", "--rank", "2"],
    "runs": [],
    "ui": ["--help"],
}
"""Tool -> flags with which it reads a run, a job or a file of weights: what it then
says of them is not asked here."""


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a job, files of all programs, a run, and canaries;
    outside of it is one on the path."""
    here, path = tmp_path / "here", tmp_path / "path"
    for place in (path / "evilmod", here / "extension", here / "PIL"):
        place.mkdir(parents=True)
        (place / "__init__.py").write_text(CANARY + "AI_TOOLKIT_EXTENSIONS = []\n")
    (path / "evilmod" / "__init__.py").write_text(
        CANARY + "import torch\nclass Opt(torch.optim.AdamW): ...\n"
    )
    for name in ("yaml", "torch", "numpy", "jinja2", "sitecustomize", "evilmod"):
        (here / f"{name}.py").write_text(CANARY)
    (here / "model").symlink_to(tiny_model)
    draw_pictures(here / "data", "a", "b")
    (here / "data" / "table.csv").write_text("image,prompt\na.png,x\n")
    text = json.dumps({"job": "extension", "config": {"name": "one", "process": [JOB]}})
    (here / "job.yaml").write_text(text)
    for name, content in FOREIGN.values():
        (here / name).write_text(content)
    (here / "data.toml").write_text(
        '[general]\nresolution = [64, 64]\n[[datasets]]\nimage_directory = "data"\n'
    )
    (here / "dataset.toml").write_text(
        "resolutions = [64]\n[[directory]]\npath = 'data'\n"
    )
    (here / "data.json").write_text(
        json.dumps([{"id": "a", "type": "local", "instance_data_dir": "data"}])
    )
    run = here / "output" / "one"
    (run / "samples").mkdir(parents=True)
    (run / "config.yaml").write_text(text)
    (run / "run.json").write_text(
        json.dumps({"name": "one", "status": "finished", "step": 1, "steps": 1})
    )
    import torch

    key = "transformer_blocks.0.attn.to_q"
    save_file(
        {
            f"{key}.lora_A.weight": torch.ones(4, 8),
            f"{key}.lora_B.weight": torch.ones(8, 4),
        },
        run / "one.safetensors",
    )
    monkeypatch.setenv("CANARY", str(tmp_path / "executed"))
    monkeypatch.setenv("PYTHONPATH", str(path))
    monkeypatch.chdir(here)
    return here


def executed() -> list[str]:
    """The modules that were executed."""
    file = Path(os.environ["CANARY"])
    return file.read_text().split() if file.exists() else []


@dataclass
class Said:
    code: int
    text: str


def command(*words: str) -> Said:
    """What `run.py` says in an interpreter that begins here."""
    argv = [sys.executable, str(ROOT / "run.py"), *words]
    done = subprocess.run(
        argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300
    )
    return Said(done.returncode, done.stdout + done.stderr)


@pytest.fixture
def forked(nursery: Nursery, folder: Path) -> Callable[..., Said]:
    """The same in a process that has imported everything but the canaries."""
    places = {
        "RUN": "output/one",
        "JOB": "job.yaml",
        "FILE": "output/one/one.safetensors",
    }

    def run(*words: str) -> Said:
        argv = [places.get(word, word) for word in words]
        faults = [("search_path", os.environ["PYTHONPATH"])]
        child = nursery.fork(
            argv, folder, "../said", faults, environment=dict(os.environ)
        )
        return Said(child.wait(), child.output)

    return run


def test_importing_a_file_names_the_code_and_does_not_run_it(folder: Path) -> None:
    found = command("import", "musubi.toml")
    assert executed() == [] and "evilmod/__init__.py" in found.text, found


def test_no_reader_executes_what_a_file_names(forked: Callable[..., Said]) -> None:
    assert FOREIGN_FILES.keys() - {"not_read"} <= FOREIGN.keys()
    for program, (file, _) in FOREIGN.items():
        found = forked("import", file)
        assert (executed(), found.code in (0, 2)) == ([], True), (file, found)
        if program in FOREIGN_FILES:
            assert "evilmod" in found.text, (file, found)
    for flags in ((), ("--json",), ("--memory",)):
        found = forked("job.yaml", "--dry-run", *flags)
        assert (executed(), "evilmod/__init__.py" in found.text) == ([], True), found


def test_no_tool_executes_what_a_run_or_a_job_names(
    forked: Callable[..., Said],
) -> None:
    assert TOOLS.keys() == discover().tools().keys()
    for uid, words in TOOLS.items():
        found = forked(uid, *words)
        assert executed() == [] and "Traceback" not in found.text, (uid, found)


def test_the_training_executes_it(forked: Callable[..., Said]) -> None:
    shutil.rmtree("output")
    found = forked("job.yaml")
    assert (found.code, set(executed())) == (0, {"evilmod"}), found


def test_no_route_of_the_page_executes_what_is_typed_or_lies_in_its_folders(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it starts trainings
    monkeypatch.setattr(Queue, "start_runner", lambda queue: None)
    Path("jobs").mkdir()
    Path("datasets/1_x").mkdir(parents=True)
    shutil.copy("data/a.png", "datasets/1_x")
    shutil.copy("job.yaml", "jobs/x.yaml")
    text = Path("job.yaml").read_text()
    ui = Ui(
        *(folder / name for name in ("output", "datasets", "jobs")),
        token="",
        price_per_hour=0.0,
    )
    client = TestClient(
        make_app(ui), base_url="http://localhost:8675", raise_server_exceptions=False
    )
    headers = {"origin": "http://localhost:8675"}
    for method, path in addresses():
        path = (
            path.replace("/runs/1", "/runs/one")
            .replace("/jobs/1", "/jobs/x.yaml")
            .replace("/datasets/1", "/datasets/1_x")
        )
        if not path.endswith("/live"):  # an endless stream of what `news` reads
            client.request(method, path, headers=headers)
    assert {route.path for route in ROUTES if not isinstance(route, Mount)} >= {
        "/new",
        "/jobs/{file}",
        "/queue/start",
    }
    for action in ("check", "search", "save"):
        answer = client.post(
            "/new", data={"action": action, "yaml": text}, headers=headers
        )
        assert answer.status_code < 400 and "evilmod" in answer.text, answer.text
    file, content = FOREIGN["musubi"]
    for sent in (
        {"data": {"import_text": content}},
        {"files": {"import_file": (file, content)}},
    ):
        given = {"action": "import", **sent.pop("data", {})}
        answer = client.post("/new", data=given, headers=headers, **sent)
        assert "evilmod" in answer.text, answer.text
    assert executed() == []
