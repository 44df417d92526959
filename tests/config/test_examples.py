"""The jobs in config/examples: each can be planned as it is, and those that run anywhere really learn."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from extensions.compat.fluxflow import sized
from extensions.from_scratch.plan import Work
from extensions.from_scratch.vae_config import VaeTrainerConfig
from tests.conftest import ROOT, child_environment
from tests.light_start import FORBID
from toolkit.config import load_job
from toolkit.config.reading import normalise
from toolkit.data.batches.image_data import ImageData
from toolkit.extension import discover
from toolkit.memory.estimate import GB
from toolkit.system.nvidia import likely_cause, read_facts

Run = Callable[..., subprocess.CompletedProcess]

CONFIG = Path(__file__).resolve().parents[2] / "config"
EXAMPLES = sorted(
    path.relative_to(CONFIG.parent).as_posix()
    for path in (CONFIG / "examples").iterdir()
    if path.suffix in (".yaml", ".yml", ".json", ".jsonc")
)


FROM_SCRATCH = sorted(
    path.relative_to(CONFIG.parent).as_posix() for path in CONFIG.glob("examples/from_scratch/*.yaml")
)
"""One for each entry of the table of cards in docs/from_scratch.md."""


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A working directory that holds nothing but the examples."""
    folder = tmp_path / "work"
    shutil.copytree(CONFIG, folder / "config")
    return folder


def test_the_quickstart_is_among_them() -> None:
    assert "config/examples/quickstart.yaml" in EXAMPLES


@pytest.mark.parametrize("name", [*EXAMPLES, *FROM_SCRATCH])
def test_each_is_read_without_a_word_of_other_programs(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(normalise, "foreign_keys", lambda: pytest.fail("other programs were asked"))
    assert load_job(Path(name), discover().find_config).processes


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What a dry run says of each example, without torch, a network, or a trace."""
    root = tmp_path_factory.mktemp("plans")
    (root / "site").mkdir()
    (root / "site" / "sitecustomize.py").write_text(FORBID, encoding="utf-8")
    shutil.copytree(CONFIG, root / "work" / "config")
    before = files_in(root / "work")
    command = [sys.executable, str(ROOT / "run.py"), *EXAMPLES, *FROM_SCRATCH, "--dry-run", "--json"]
    environment = child_environment({"PYTHONPATH": str(root / "site")})
    result = subprocess.run(command, cwd=root / "work", env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "".join(f"{path}: done\n" for path in (*EXAMPLES, *FROM_SCRATCH)))
    assert files_in(root / "work") == before
    return dict(zip([*EXAMPLES, *FROM_SCRATCH], json.loads(result.stdout), strict=True))


def test_an_example_can_be_planned_without_torch_network_or_a_trace(plans: dict[str, dict]) -> None:
    assert all(plan["processes"] for plan in plans.values())


REAL = [example for example in EXAMPLES if "/train_" in example]
"""The examples on the published model."""


@pytest.mark.parametrize("example", REAL)
def test_the_header_of_an_example_says_the_memory_that_its_plan_says(plans: dict[str, dict], example: str) -> None:
    head = (CONFIG.parent / example).read_text(encoding="utf-8").splitlines()[0]
    peak = plans[example]["processes"][0]["memory"]["device_bytes"] / 1e9
    assert f"planned peak {peak:.1f} GB." in head
    assert peak < int(re.search(r"one (\d+) GB GPU", head)[1])


@pytest.mark.parametrize("example", REAL)
def test_what_an_example_says_of_its_device_is_what_its_plan_says(plans: dict[str, dict], example: str) -> None:
    """The model is too large for a CPU: without a GPU the run does not start."""
    (line,) = re.findall(r"^ +device: (.*)$", (CONFIG.parent / example).read_text(encoding="utf-8"), re.MULTILINE)
    assert " ".join(line.split()) == "cuda:0 # the first GPU; this model is not trained without one"
    refused = [reason for reason in plans[example]["processes"][0]["will_not_start"] if reason.startswith("device: ")]
    assert len(refused) == (likely_cause(read_facts()) != "")


@pytest.mark.parametrize("example", REAL)
def test_the_marked_lines_are_all_that_name_something_of_ones_own(example: str) -> None:
    """Name, trigger word, folder, prompts and control images; everything else can stay."""
    lines = (CONFIG.parent / example).read_text(encoding="utf-8").splitlines()
    own = re.compile(r"^ *[^#]*\b(my_character|my_layers|mychar|config/examples|prompt:)")
    assert [line for line in lines if own.search(line)] == [line for line in lines[5:] if line.endswith("<- yours")]
    with_references = any("ctrl_img:" in line for line in lines)
    prompts = sum("prompt:" in line for line in lines)
    assert sum(line.endswith("<- yours") for line in lines[5:]) == 3 + prompts + with_references


@pytest.mark.slow
def test_the_example_of_photographs_ends_with_a_lora_that_has_learned_and_with_samples(
    run_py: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half of its steps."""
    job = workplace / "config" / "examples" / "photos.yaml"
    shorter = job.read_text(encoding="utf-8").replace("every: 100", "every: 50").replace("steps: 200", "steps: 100")
    job.write_text(shorter, encoding="utf-8")
    result = run_py("config/examples/photos.yaml", cwd=workplace)
    assert (result.returncode, "Traceback" in result.stderr) == (0, False), result.stderr
    assert "2 x 20 + 3 x 40 = 160 samples per epoch" in result.stdout
    folder = workplace / "output" / "photos"
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [
        "photos.safetensors",
        "photos_000000050.safetensors",
        "photos_000000100.safetensors",
    ]
    pictures = sorted(re.sub(r"^\d+__", "", path.name) for path in (folder / "samples").iterdir())
    assert pictures == [f"{step:09d}_{index}.jpg" for step in (0, 50, 100) for index in (0, 1)]
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"

    monkeypatch.chdir(workplace)
    untrained, trained = losses()
    assert trained <= 0.8 * untrained, f"mean loss over 16 fixed draws: {untrained:.4f} before, {trained:.4f} after"


@pytest.mark.slow
def test_the_example_of_pairs_trains_with_its_control_images_and_learns(run_py: Run, workplace: Path) -> None:
    result = run_py("config/examples/edit_pairs.yaml", cwd=workplace)
    assert (result.returncode, "Traceback" in result.stderr) == (0, False), result.stderr
    assert "control images: 3 with 1" in result.stdout
    folder = workplace / "output" / "edit_pairs"
    assert (folder / "edit_pairs.safetensors").is_file()
    assert len(list((folder / "samples").iterdir())) == 3
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    course = [json.loads(line)["loss"] for line in lines]
    first, last = sum(course[:20]) / 20, sum(course[-20:]) / 20
    assert last < 0.9 * first, f"mean loss of the first 20 steps {first:.3f}, of the last 20 {last:.3f}"


def losses() -> tuple[float, float]:
    """Mean loss over 16 fixed (image, noise, t) draws: of the model alone, and with the trained LoRA folded in.

    The LoRA is added by hand, W + B A, from what its file holds: alpha / rank is in its matrices.
    """
    from toolkit.config import load_job
    from toolkit.contracts.data import BatchSpec
    from toolkit.data.batches.dataloader import BatchLoader
    from toolkit.data.batches.latent_cache import CacheStores, encode_items
    from toolkit.data.scan.items import scan_items
    from toolkit.extension import discover
    from toolkit.memory.quantization import quantizer
    from toolkit.models.loading import load_model
    from toolkit.train.flow_step import NETWORK, FlowMatchingStep

    job = load_job(Path("config/examples/photos.yaml"), discover().find_config)
    section = job.processes[1].section
    model = load_model(section.model, torch.device("cpu"), torch.float32, quantizer)
    _, items = scan_items(section, 32)
    stores = CacheStores(Path("output"))
    dataset = encode_items(items, model, stores.of_samples(section), torch.float32)
    draws = range(16)
    spec = BatchSpec(epoch=10**6, items=tuple(n % len(items) for n in draws), positions=tuple(draws))
    batch = BatchLoader(dataset, seed=1).load(spec)
    step = FlowMatchingStep(model, seed=1, timestep_type=section.train.timestep_type)

    @torch.no_grad()
    def mean_loss() -> float:
        return float(step(batch).by_role[NETWORK].mean())

    untrained = mean_loss()
    fold_in(load_file("output/photos/photos.safetensors"), model.network_module)
    return untrained, mean_loss()


@torch.no_grad()
def fold_in(lora: dict[str, torch.Tensor], model: torch.nn.Module) -> None:
    lora = {name.removeprefix("diffusion_model."): tensor.float() for name, tensor in lora.items()}
    targets = [name.removesuffix(".lora_A.weight") for name in lora if name.endswith(".lora_A.weight")]
    assert targets
    for target in targets:
        down_RI, up_OR = lora[f"{target}.lora_A.weight"], lora[f"{target}.lora_B.weight"]
        assert f"{target}.alpha" not in lora
        model.get_submodule(target).weight += up_OR @ down_RI


# ------------------------------------------------------------ autoencoders from nothing


def test_there_is_one_for_each_entry_of_the_table_of_cards() -> None:
    sizes = [f"vae_{card}gb{way}" for card in (8, 12, 16, 24, 48) for way in ("", "_max")]
    assert {Path(example).stem for example in FROM_SCRATCH} == set(sizes)
    guide = (CONFIG.parent / "docs" / "from_scratch.md").read_text(encoding="utf-8")
    for example in FROM_SCRATCH:
        peak = re.search(r"Planned peak ([\d.]+) GB", (CONFIG.parent / example).read_text(encoding="utf-8"))
        assert peak and re.search(rf"`{Path(example).stem}`[^|]*\|[^\n]*\| {peak[1]} GB \|", guide), example


@pytest.mark.slow  # three steps on fake tensors for each
@pytest.mark.parametrize("example", FROM_SCRATCH)
def test_the_plan_of_an_autoencoder_is_what_its_header_says_and_below_its_card(
    example: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For images of the full size; and for the photographs that it names, where they are smaller."""
    from extensions.from_scratch.memory import step_bytes

    monkeypatch.chdir(workplace)
    text = (workplace / example).read_text(encoding="utf-8")
    section = VaeTrainerConfig.model_validate(yaml.safe_load(text)["config"]["process"][0])
    with_lpips = section.model_copy(update={"losses": section.losses.model_copy(update={"lpips": 0.1})})
    head, more = text.splitlines()[:2]

    def peak(job: VaeTrainerConfig, data: ImageData) -> str:
        return f"{step_bytes(job, Work.largest(job, data), on_gpu=True).estimate(on_gpu=True).device_bytes / GB:.1f}"

    data = section.scan()
    full = replace(data, items=())
    planned = peak(section, full)
    assert f"Planned peak {planned} GB." in head
    assert ("# lpips: 0.1" in text) == ("With LPIPS" in more)
    if "With LPIPS" in more:
        assert f"With LPIPS (see losses): {peak(with_lpips, full)} GB." in more
    if "which are smaller" in more:
        assert f"which are smaller: {peak(section, data)} GB." in more
    card = int(re.search(r"one (\d+) GB GPU", head)[1])
    assert float(planned) < card == int(re.search(r"vae_(\d+)gb", example)[1])
    widths = section.model.config["block_out_channels"]
    assert section.model.config == sized(widths[-1])
    assert f"width {widths[-1]}, {section.datasets[0].resolution[0]} px" in head


def test_the_command_of_fluxflows_guide_with_variables_is_planned(workplace: Path) -> None:
    environment = os.environ | {"RUN": f"{sys.executable} {CONFIG.parent / 'run.py'}"}
    command = ["bash", "config/examples/fluxflow.sh", "--dry-run", "--json"]
    result = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    plan = json.loads(result.stdout)
    assert (plan["job"], plan["folders"]) == ("fluxflow_sh", ["outputs/fluxflow_sh/train"])
    assert plan["processes"][0]["optimizer_steps"] > 0
