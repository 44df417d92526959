"""The diffs and files of docs/extending.md: short, fitting the code as it is, and
enough."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.conftest import draw_pictures
from tests.model_folders import write_model
from tests.processes import output_of, python
from tests.small_parts import write_lumina2
from toolkit.files.writing import python_path

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
"""The new files that the page shows, by their paths."""

USE = """
import torch
from tests.network_files import save_network
from toolkit.config.sections.train import TrainConfig
from toolkit.flow.settings import FlowSettings
from toolkit.flow.timesteps import TimestepContext, timesteps_from_uniform
from toolkit.optim.optimizer_args import OPTIMIZERS, check_optimizer
from toolkit.optim.schedules import build_schedule, check_parameters

train = TrainConfig(lr_scheduler="inverse_time", optimizer="nadam", timestep_type="arcsine")
check_parameters(train.lr_scheduler, {"decay_rate": 1})
rate = build_schedule(train.lr_scheduler, 9, 2, {"decay_rate": 1})
print([rate(step) for step in (0, 1, 2, 3, 5)])
check_optimizer(train.optimizer, {"momentum_decay": 0.004})
print(OPTIMIZERS.load(train.optimizer) is torch.optim.NAdam)
settings = FlowSettings(**FlowSettings.named_in(train))
shares = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
print([round(t, 9) for t in timesteps_from_uniform(shares, settings, TimestepContext(64, 0.5, 0.02)).tolist()])

from pathlib import Path
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.network import NetworkConfig
from toolkit.memory.estimate import StepShape
from toolkit.models.families import family_for
from toolkit.models.loading import load_model
from toolkit.contracts.network_kinds import KINDS

from toolkit.networks.lora_formats import load_adapter_file

section = NetworkConfig(type="rslora", linear=4, linear_alpha=6)
base = torch.nn.Sequential(torch.nn.Linear(8, 8))
network = KINDS[section.type].load().from_config(section, ["0"], 1)
network.attach(base)
with torch.no_grad():
    for parameter in network.parameters().values():
        parameter += 0.1
save_network(Path("x.safetensors"), network.export(network.parameters()), "float32", {})
delta = load_adapter_file(Path("x.safetensors"), ["0"])["0"].delta()
parts = network.layer_weights("0")
print(torch.allclose(delta, 3 * parts["lora_B.weight"] @ parts["lora_A.weight"]))
print(sum(rows * columns for rows, columns in KINDS["rslora"].layer_shapes(section, 8, 8).values()))
print(StepShape(7, 8, 2, 4, "rslora").kept("none") > 0)

from tests.findings import warnings
from tests.toolkit.config.conftest import find_model, trainer
from toolkit.config.reading.loader import load_job

Path("photos").mkdir()
Path("job.yaml").write_text(trainer("datasets: [{image_dir: photos}]"))
print(load_job("job.yaml", find_model).processes[0].section.datasets[0].folder_path)

from toolkit.flow.loss import loss_per_sample

print([(found.key, found.severity) for found in warnings(NetworkConfig(linear=600))])
one = torch.ones(1, 1, 2, 2)
settings = FlowSettings.named_in(TrainConfig(loss_type="log_cosh"))
print(round(float(loss_per_sample(one, 0 * one, settings=FlowSettings(**settings))), 6))

model = ModelConfig(name_or_path="./model")
family = family_for(model)
adapter = load_model(model, torch.device("cpu"), torch.float32, lambda qtype: None)
print(family.title, family.max_references, adapter.family is family)
print(ModelConfig(name_or_path="a/b", arch="terse").arch)
"""

EQUAL = """
import torch
from pathlib import Path
from diffusers import Lumina2Pipeline
from tests.diffusers_reference import memory_stores, psnr
from toolkit.config.sections.model_files import family_named
from toolkit.data.batches.latent_cache import ItemEncoder
from toolkit.contracts.data import Size
from toolkit.models.families import ModelLoadOptions
from toolkit.train.sampling import SamplePrompt, Sampler

folder, text = Path("models/lumina2"), "a photo of a cat"
options = ModelLoadOptions(folder=folder, device=torch.device("cpu"), dtype=torch.float32, reference_area=0)
model = family_named("lumina2").open(options)
pipeline = Lumina2Pipeline.from_pretrained(folder)
for guidance in (1.0, 4.0):
    prompt = SamplePrompt(text, "", Size(128, 64), 42, guidance, 4)
    ours = Sampler(model, [prompt], ItemEncoder(model, torch.float32), memory_stores()).generate(0)
    theirs = pipeline(
        text, negative_prompt="", guidance_scale=guidance, width=128, height=64, num_inference_steps=4,
        generator=torch.Generator().manual_seed(42),
    ).images[0]
    print(psnr(ours, theirs) > 60)
"""
"""What the page's family draws is what its pipeline draws."""


def changed(diff: str) -> list[str]:
    return [
        line
        for line in diff.splitlines()
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]


def apply(diff: str, root: Path) -> None:
    """Hunks without line numbers: what a hunk takes away, or stands beside, must be
    there exactly once."""
    for file, hunks in re.findall(
        r"^\+\+\+ b/(\S+)\n(.*?)(?=^--- |\Z)", diff, re.DOTALL | re.MULTILINE
    ):
        path = root / file
        text = path.read_text(encoding="utf-8")
        for hunk in hunks.split("@@\n")[1:]:
            lines = hunk.splitlines()
            old = "".join(line[1:] + "\n" for line in lines if not line.startswith("+"))
            new = "".join(line[1:] + "\n" for line in lines if not line.startswith("-"))
            assert text.count(old) == 1, (
                f"{file} has this {text.count(old)} times:\n{old}"
            )
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "diff",
    DIFFS,
    ids=[
        "rule",
        "name",
        "tool",
        "loss",
        "schedule",
        "optimizer",
        "timestep sampling",
    ],
)
def test_a_diff_is_under_ten_lines(diff: str) -> None:
    assert 0 < len(changed(diff)) < 10


def test_the_diffs_fit_the_code(tmp_path: Path) -> None:
    for file in re.findall(r"^\+\+\+ b/(\S+)$", "\n".join(DIFFS), re.MULTILINE):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    for diff in DIFFS:
        apply(diff, tmp_path)


@pytest.mark.slow
def test_the_diffs_make_what_they_add_usable(tmp_path: Path) -> None:
    for part in ("toolkit", "jobs", "extensions"):
        shutil.copytree(
            ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "run.py", tmp_path)
    for diff in DIFFS:
        apply(diff, tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    write_model(tmp_path / "model", "TersePipeline", without="processor")
    # The path has the repository, of which only `tests` is used.
    environment = {**os.environ, "PYTHONPATH": python_path()}
    used = python(USE, cwd=tmp_path, env=environment, said="")
    assert used.splitlines() == [
        *("[0.0, 0.5, 1.0, 0.5, 0.25]", "True", "[0.0, 0.5, 1.0]"),
        *("True", "64", "True"),
        *("photos", "[(('linear',), 'warning')]", "0.433781"),
        *("Terse 0 True", "terse"),
    ]
    tool = [sys.executable, "run.py", "layers", "x.safetensors"]
    assert output_of(*tool, cwd=tmp_path).splitlines()[-3:] == [
        f"diffusion_model.0.{part}"
        for part in ("alpha", "lora_A.weight", "lora_B.weight")
    ]
    assert "see the tensors in a file" in output_of(*tool[:2], "--help", cwd=tmp_path)


@pytest.mark.slow
def test_the_family_from_nothing_trains_and_draws_as_its_pipeline(
    tmp_path: Path,
) -> None:
    """The files, the command, and the job of the page as they are printed."""
    for name, text in FILES.items():
        if name.startswith("extensions/lumina2/"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
    write_lumina2(tmp_path / "models" / "lumina2")
    draw_pictures(tmp_path / "photos", "a", "b")
    (job,) = re.findall(r"```yaml\n# lumina.yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "lumina.yaml").write_text(job, encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": python_path(),
        "EXTENSIONS_PATH": str(tmp_path / "extensions" / "lumina2"),
    }

    def run(*command: str) -> str:
        return output_of(*command, cwd=tmp_path, env=environment)

    (command,) = re.findall(r'```bash\n\S+ -c "(.*?)"\n```', PAGE, re.DOTALL)
    run(sys.executable, "-c", command)
    started = [sys.executable, str(ROOT / "run.py"), "lumina.yaml"]
    plan = run(*started, "--dry-run", "-v")
    assert "on 14 layers" in plan, plan
    small = "device=cpu train.steps=2 datasets.0.resolution=64 sample.sample_steps=2"
    run(*started, *(word for key in small.split() for word in ("--set", key)))
    output = tmp_path / "output" / "my_lora"
    assert (output / "my_lora.safetensors").is_file()
    assert [*(output / "samples").iterdir()]
    assert run(sys.executable, "-c", EQUAL).split() == ["True", "True"]


def test_a_diff_that_no_longer_fits_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    with pytest.raises(AssertionError, match=r"a\.py has this 2 times"):
        apply("--- a/a.py\n+++ b/a.py\n@@\n x = 1\n+y = 2\n", tmp_path)
