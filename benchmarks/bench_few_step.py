"""Does a LoRA survive four steps? The quickstart's character, judged by a classifier at 28 steps with guidance and at 4
steps with the few-step LoRA of benchmarks/few_step_adapter.py.

`python benchmarks/bench_few_step.py output/few_step.safetensors` trains each variant of the quickstart and measures it;
`--variant few_step_loss` one of them. `before` is the base model without a trained LoRA."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "config" / "examples" / "extensions", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import torch  # noqa: E402
import yaml  # noqa: E402
from mascots.mascot import Casting, Lots, Mascot, random_mascot  # noqa: E402
from mascots.words import caption  # noqa: E402

from benchmarks import report, timing  # noqa: E402
from benchmarks.bench_learning import EXAMPLES, LOOKS, SEED, Job, character, training, unseen  # noqa: E402
from benchmarks.bench_learning import _share as share  # noqa: E402
from benchmarks.bench_mascots import GUIDANCE, SIDE, load  # noqa: E402
from benchmarks.few_step_adapter import FEW, MANY, MODEL, SHIFT  # noqa: E402
from benchmarks.mascot_classifier import MascotClassifier, pixels_of, trained  # noqa: E402
from toolkit.config.model import ModelConfig  # noqa: E402
from toolkit.data.cache import TensorCache  # noqa: E402
from toolkit.data.latent_cache import CachePair, ItemEncoder  # noqa: E402
from toolkit.data.types import Size  # noqa: E402
from toolkit.models.families import family_for  # noqa: E402
from toolkit.networks.applied import AppliedAdapters, Changes  # noqa: E402
from toolkit.networks.lora_formats import load_adapter_file  # noqa: E402
from toolkit.train.sampling import SamplePrompt, Sampler  # noqa: E402


def plain(job: Job, few: str) -> None:
    """The example."""


def few_step_loss(job: Job, few: str) -> None:
    """The same with the late micro-batches through the few-step LoRA, as distillation."""
    training(job)["train"]["few_step_loss"] = {
        "lora": few,
        "steps": FEW,
        "flow_shift": SHIFT,
        "guidance_scale": GUIDANCE,
    }


Variant = Callable[[Job, str], None]
VARIANTS: tuple[Variant, ...] = (plain, few_step_loss)


def measure(
    few: str, lora: str, job: Job, count: int, classifier: MascotClassifier, strength: float
) -> dict[str, float]:
    """Shares of samples that show the character, and other mascots in body and colour, in many and in few steps.

    strength: of the trained LoRA in few steps."""
    model = load(str(MODEL))
    section = ModelConfig(name_or_path=str(MODEL))
    layers = family_for(section).every_linear_layer(section.files_folder())
    files: list[Changes] = [load_adapter_file(Path(file), layers) for file in (few, lora) if file]
    applied = AppliedAdapters(model.network_module, files, torch.device("cpu"))
    scenes, looks = Casting("pretraining", only=unseen(job)), character(job)
    asked = [
        Mascot(**{**vars(random_mascot(Lots(SEED, "learning", index), scenes)), **looks}) for index in range(count)
    ]
    others = [random_mascot(Lots(SEED, "stays", index), Casting("pretraining")) for index in range(count)]
    found = {}
    for name, mascots, looked_at in (("character", asked, LOOKS), ("others", others, ("body", "colour"))):
        many = [
            SamplePrompt(caption(mascot), "", Size(SIDE, SIDE), SEED + index, GUIDANCE, MANY)
            for index, mascot in enumerate(mascots)
        ]
        fast = {"guidance_scale": 1.0, "steps": FEW, "flow_shift": SHIFT, "stretched": False}
        for kind, prompts in (("many", many), ("few", [replace(prompt, **fast) for prompt in many])):
            used = [(changes, 1.0) for changes in files[1:]]
            if kind == "few":
                used = [(files[0], 1.0), *((changes, strength) for changes in files[1:])]
            applied.use(used)
            stores = CachePair(TensorCache(None), TensorCache(None))
            sampler = Sampler(model, prompts, ItemEncoder(model, torch.float32), stores)
            images = [sampler.generate(index) for index in range(count)]
            found[f"{name}, {kind} steps"] = share(classifier.attributes(pixels_of(images)), mascots, *looked_at)
    return found


def train(job: Job, folder: Path) -> tuple[str, float]:
    """Runs a job in a new working directory; its LoRA, and the seconds it took."""
    folder.mkdir(parents=True)
    (folder / "config").symlink_to(ROOT / "config")
    (folder / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False), encoding="utf-8")
    began = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / "run.py"), "job.yaml"], cwd=folder, check=True, stdout=sys.stderr)
    name = job["config"]["name"]
    return str(folder / "output" / name / f"{name}.safetensors"), time.perf_counter() - began


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("few", type=Path, help="the few-step LoRA")
    parser.add_argument("--variant", choices=["before", *(one.__name__ for one in VARIANTS)], nargs="*")
    parser.add_argument("--count", type=int, default=100, help="samples of each kind")
    parser.add_argument("--seed", type=int, help="training_seed; left out: that of the example")
    parser.add_argument("--strength", type=float, default=1.0, help="of the trained LoRA in few steps")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    report.card("few_step", f"{asked.count} samples of each kind")
    classifier, few, figures = trained(), str(asked.few.resolve()), {}
    with tempfile.TemporaryDirectory() as folder:
        for variant in (None, *VARIANTS):
            name = variant.__name__ if variant else "before"
            if asked.variant and name not in asked.variant:
                continue
            job: dict[str, Any] = yaml.safe_load((EXAMPLES / "quickstart.yaml").read_text(encoding="utf-8"))
            lora, seconds = "", 0.0
            if variant:
                del training(job)["sample"]
                training(job)["training_seed"] = asked.seed or training(job)["training_seed"]
                variant(job, few)
                lora, seconds = train(job, Path(folder, name))
            figures[name] = measure(few, lora, job, asked.count, classifier, asked.strength)
            shares = ", ".join(f"{what} {value:.0%}" for what, value in figures[name].items())
            print(f"{name:<20} {shares}, {seconds:.0f} s", flush=True)
    report.finish("few_step", count=asked.count, figures=figures)


if __name__ == "__main__":
    main()
