"""What happens around the steps, against the same work written plainly: `python
benchmarks/bench_around.py`.

The plain variants are diffusers' own pipeline, optimum-quanto, and loops of torch and
safetensors that do what the formula says and no more: they check nothing, and a write
that is interrupted leaves half a file. Each part runs in two sizes, the second with four
times the work; variants take turns. Only CPU seconds of all threads count.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy  # noqa: E402
import torch  # noqa: E402
from diffusers import QwenImagePipeline  # noqa: E402
from diffusers.utils import logging  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks import report, timing  # noqa: E402
from extensions.tools.ui.app import make_app  # noqa: E402
from extensions.tools.ui.state import Ui  # noqa: E402
from jobs import ExtensionJob  # noqa: E402
from toolkit.config.reading.tool import load_tool  # noqa: E402
from toolkit.config.sections.dataset import DatasetConfig  # noqa: E402
from toolkit.config.sections.model import ModelConfig  # noqa: E402
from toolkit.contracts.data import (  # noqa: E402
    BucketedSample,
    ResizeCrop,
    Sample,
    Size,
)
from toolkit.data.batches.latent_cache import (  # noqa: E402
    CachePair,
    ItemEncoder,
    encode_items,
)
from toolkit.data.scan.folder import scan_datasets  # noqa: E402
from toolkit.extension import discover as discover_extensions  # noqa: E402
from toolkit.files.tensor_cache import TensorCache  # noqa: E402
from toolkit.memory.quantization import quantizer  # noqa: E402
from toolkit.models.tiny import TinySpec, write_tiny_model  # noqa: E402
from toolkit.networks.save import write_safetensors_verified  # noqa: E402
from toolkit.optim.optimizers import build_optimizer  # noqa: E402
from toolkit.train.base_model import load_base_model  # noqa: E402
from toolkit.train.checkpoint_state import load_state, snapshot_state  # noqa: E402
from toolkit.train.checkpoint_store import (  # noqa: E402
    latest_checkpoint,
    write_checkpoint,
)
from toolkit.train.flow_step import NETWORK  # noqa: E402
from toolkit.train.optimizer_step import Role  # noqa: E402
from toolkit.train.run import Run  # noqa: E402
from toolkit.train.sampling import SamplePrompt, Sampler  # noqa: E402

discover = cache(discover_extensions)

GROWTH = 4
"""How much more work the second size of a part is."""

SEED = 7

Variants = Mapping[str, Callable[[], object]]
"""Name -> a call of the work; "ours" and mostly "plain"."""


Part = tuple[Callable[[Path, int], Variants], int]
"""What makes the variants in an empty folder for a size, and the smaller size."""


# ------------------------------------------------------------ scanning


def scanning(folder: Path, size: int) -> Variants:
    """Small JPEGs with captions; plainly their names, sizes and texts."""
    content = io.BytesIO()
    Image.new("RGB", (64, 64)).save(content, "JPEG")
    for number in range(size):
        (folder / f"{number}.jpg").write_bytes(content.getvalue())
        (folder / f"{number}.txt").write_text(f"ch4r with a cup of coffee {number}")

    def ours() -> None:
        scan_datasets([DatasetConfig(folder_path=str(folder))], "ch4r")

    def plain() -> None:
        files = sorted(folder.glob("*.jpg"))
        [(Image.open(one).size, one.with_suffix(".txt").read_text()) for one in files]

    return {"ours": ours, "plain": plain}


# ------------------------------------------------------------ encoding and drawing

SIDE = 256
"""Pixels of a side of all images."""

DTYPE = torch.bfloat16
CFG = 4.0


def write_model(folder: Path, blocks: int = 2) -> Path:
    """A complete tiny Qwen-Image, its transformer in bfloat16."""
    write_tiny_model(folder, TinySpec(arch="qwen_image", layers=blocks, heads=16))
    for shard in (folder / "transformer").glob("*.safetensors"):
        tensors = load_file(shard)
        save_file({name: tensors[name].to(DTYPE) for name in tensors}, shard)
    return folder


def pipeline(model: Path) -> Any:
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    made = QwenImagePipeline.from_pretrained(model, torch_dtype=DTYPE)
    made.set_progress_bar_config(disable=True)
    return made


def our_model(model: Path) -> Any:
    config = ModelConfig(name_or_path=str(model))
    return load_base_model(config, torch.device("cpu"), DTYPE)


def first_latents(folder: Path, size: int) -> Variants:
    """JPEGs, four times as large as they are encoded."""
    items = items_of(folder, size)
    model = our_model(write_model(folder / "model"))
    vae = pipeline(folder / "model").vae
    mean, std = (
        torch.tensor(values, dtype=DTYPE).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    numbers = count()

    def ours() -> None:
        for item in items:
            Path(item.sample.image).touch()  # a file that changed is hashed again
        cache = TensorCache(folder / f"ours_{next(numbers)}")
        pair = CachePair(cache, cache)
        encode_items(items, model, lambda sample: pair, DTYPE, later=[])

    @torch.no_grad()
    def plain() -> None:
        for item in items:
            image = Image.open(item.sample.image).convert("RGB")
            image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1) / 127.5 - 1
            encoded = vae.encode(pixels.to(DTYPE)[None, :, None]).latent_dist.mode()
            latents = ((encoded - mean) / std)[0, :, 0].contiguous()
            save_file({"latents": latents}, folder / f"plain_{next(numbers)}")

    return {"ours": ours, "plain": plain}


def items_of(folder: Path, count: int) -> list[BucketedSample]:
    """Noisy images with captions of a hundred words."""
    noise = numpy.random.default_rng(SEED)
    square = Size(SIDE, SIDE)
    items = []
    for number in range(count):
        pixels = noise.integers(0, 256, (2 * SIDE, 2 * SIDE, 3), dtype=numpy.uint8)
        file = folder / f"{number}.jpg"
        Image.fromarray(pixels).save(file, quality=90)
        caption = f"{number} a photo of a person with a cup of coffee " * 10
        sample = Sample(str(file), caption, 1, Size(2 * SIDE, 2 * SIDE), str(folder))
        items.append(BucketedSample(sample, ResizeCrop(square, 0, 0, square)))
    return items


def first_texts(folder: Path, size: int) -> Variants:
    """With loading the text encoder."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    items = items_of(folder, size)
    model, pipe = our_model(write_model(folder / "model")), pipeline(folder / "model")
    numbers = count()

    def ours() -> None:
        cache = TensorCache(folder / f"ours_{next(numbers)}")
        pair = CachePair(cache, cache)
        encode_items(items, model, lambda sample: pair, DTYPE, latents=False)

    @torch.no_grad()
    def plain() -> None:
        pipe.text_encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder / "model" / "text_encoder", dtype=DTYPE
        )
        for item in items:
            embeds = pipe.encode_prompt(item.sample.caption)[0]
            save_file({"embeds": embeds[0]}, folder / f"plain_{next(numbers)}")

    return {"ours": ours, "plain": plain}


def sampling(folder: Path, size: int) -> Variants:
    """Steps of one image with guidance, from texts that are encoded."""
    model, pipe = our_model(write_model(folder)), pipeline(folder)
    prompt = SamplePrompt("a cup of coffee", " ", Size(SIDE, SIDE), SEED, CFG, size)
    store = TensorCache(None)
    encoder = ItemEncoder(model, DTYPE)
    sampler = Sampler(model, [prompt], encoder, CachePair(store, store))
    sampler.encode(lambda *done: None)
    with torch.no_grad():
        texts = [pipe.encode_prompt(text)[0] for text in (prompt.prompt, " ")]

    def plain() -> None:
        embeds = {"prompt_embeds": texts[0], "negative_prompt_embeds": texts[1]}
        pipe(**embeds, **drawing(size), output_type="latent")

    return {"ours": lambda: sampler.latents(0), "plain": plain}


def drawing(steps: int) -> dict[str, Any]:
    return {
        "height": SIDE,
        "width": SIDE,
        "num_inference_steps": steps,
        "true_cfg_scale": CFG,
        "generator": torch.Generator().manual_seed(SEED),
    }


def generating(folder: Path, size: int) -> Variants:
    """Images of four steps, with loading the model."""
    model = write_model(folder / "model")
    numbers = count()
    prompts = [f"a cup of coffee {number}" for number in range(size)]
    (folder / "prompts.txt").write_text("\n".join(prompts))

    def ours() -> None:
        flags = f"--steps 4 --cfg {CFG} --width {SIDE} --height {SIDE} --device cpu"
        files = ("--prompts", folder / "prompts.txt", "--model", model)
        output = folder / f"ours_{next(numbers)}"
        tool("generate", *flags.split(), *files, "--output", output)

    def plain() -> None:
        pipe = pipeline(model)
        for prompt in prompts:
            drawn = pipe(prompt, negative_prompt=" ", **drawing(4)).images[0]
            drawn.save(folder / f"plain_{next(numbers)}.png")

    return {"ours": ours, "plain": plain}


# ------------------------------------------------------------ states of runs


def run_of(folder: Path, layers: int) -> Run:
    """A run that trains a LoRA of rank 16 on layers of 1,024, after one step."""
    torch.manual_seed(SEED)
    shapes = {"lora_A": (16, 1024), "lora_B": (1024, 16)}
    parameters = {
        f"layer_{layer}.{end}.weight": nn.Parameter(torch.randn(shape))
        for layer in range(layers)
        for end, shape in shapes.items()
    }
    optimizer = build_optimizer("adamw", parameters.values(), 1e-4, {})
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    roles = {NETWORK: Role(parameters, optimizer, 1e-4, lambda step: 1.0)}
    return Run("bench", folder, 1, 1, SEED, roles=roles, callbacks=[])


def plain_state(run: Run) -> dict[str, dict[str, Tensor]]:
    """The weights and the optimizer's tensors, by name: a file is made of each."""
    role = run.roles[NETWORK]
    states = {
        name: role.optimizer.state[role.parameters[name]] for name in role.parameters
    }
    moments = {
        f"{name}/{key}": one for name in states for key, one in states[name].items()
    }
    return {"weights": dict(role.parameters), "optimizer": moments}


def saving(folder: Path, size: int) -> Variants:
    """A state, and the LoRA in bfloat16."""
    run = run_of(folder, size)
    numbers = count(1)

    def lora() -> dict[str, Tensor]:
        weights = run.roles[NETWORK].parameters
        return {name: weights[name].detach().to(DTYPE) for name in weights}

    def ours() -> None:
        run.state.step = next(numbers)
        write_checkpoint(folder / "states", snapshot_state(run), keep=2)
        write_safetensors_verified(folder / "ours.safetensors", lora(), {})

    def plain() -> None:
        for name, tensors in plain_state(run).items():
            save_file(tensors, folder / f"{name}.safetensors")
        save_file(lora(), folder / "plain.safetensors")

    return {"ours": ours, "plain": plain}


def resuming(folder: Path, size: int) -> Variants:
    run = run_of(folder, size)
    run.state.step = 1
    write_checkpoint(folder / "states", snapshot_state(run), keep=2)
    for name, tensors in plain_state(run).items():
        save_file(tensors, folder / f"{name}.safetensors")

    def ours() -> None:
        found = latest_checkpoint(folder / "states")
        assert found
        load_state(found, run)

    @torch.no_grad()
    def plain() -> None:
        for name, tensors in plain_state(run).items():
            read = load_file(folder / f"{name}.safetensors")
            for key, tensor in tensors.items():
                tensor.copy_(read[key])

    return {"ours": ours, "plain": plain}


# ------------------------------------------------------------ tools


def tool(uid: str, *flags: object) -> None:
    """The work of a command, without its imports."""
    table = discover()
    job = load_tool(uid, table.find_command(uid), [*map(str, flags)])
    ExtensionJob(job, table).process[0].run()


def quantizing(qtype: str) -> Callable[[Path, int], Variants]:
    def make(folder: Path, size: int) -> Variants:
        from optimum.quanto import freeze, qtypes, quantize

        torch.manual_seed(SEED)
        weight = nn.Parameter(torch.randn(64 * size, 768).bfloat16())

        def block() -> nn.Module:
            linear = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
            linear.weight = weight
            return nn.Sequential(linear)

        def plain() -> None:
            one = block()
            quantize(one, weights=qtypes[f"q{qtype}"])
            freeze(one)

        return {"ours": lambda: quantizer(qtype)(block(), "block"), "plain": plain}

    return make


def converting(folder: Path, size: int) -> Variants:
    write_lora(folder / "lora.safetensors", size)
    numbers = count()

    def plain() -> None:
        tensors: dict[str, Tensor] = {}
        for key, tensor in load_file(folder / "lora.safetensors").items():
            name, end = key.removeprefix("transformer.").split(".lora_")
            stem = f"lora_unet_{name.replace('.', '_')}"
            way = "down" if end == "A.weight" else "up"
            tensors[f"{stem}.lora_{way}.weight"] = tensor
            tensors[f"{stem}.alpha"] = torch.tensor(16.0)
        save_file(tensors, folder / f"plain_{next(numbers)}.safetensors")

    def ours() -> None:
        output = folder / f"ours_{next(numbers)}.safetensors"
        tool("convert", folder / "lora.safetensors", output, "--to", "kohya")

    return {"ours": ours, "plain": plain}


def write_lora(file: Path, blocks: int) -> list[str]:
    """A LoRA of the attention of so many blocks, as diffusers writes it. Returns its
    layers."""
    names = [
        f"transformer_blocks.{block}.attn.{layer}"
        for block in range(blocks)
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
    ]
    torch.manual_seed(SEED)
    tensors = {
        f"transformer.{name}.lora_{end}.weight": torch.randn(shape).bfloat16() / 512
        for name in names
        for end, shape in (("A", (16, 512)), ("B", (512, 16)))
    }
    save_file(tensors, file)
    return names


def merging(folder: Path, size: int) -> Variants:
    """Into a model folder of so many blocks."""
    model = write_model(folder / "model", blocks=size)
    names = write_lora(folder / "lora.safetensors", size)
    numbers = count()

    def plain() -> None:
        output = folder / f"plain_{next(numbers)}" / "transformer"
        output.mkdir(parents=True)
        lora = load_file(folder / "lora.safetensors")
        for shard in (model / "transformer").glob("*.safetensors"):
            weights = load_file(shard)
            for name in names:
                if f"{name}.weight" in weights:
                    down = lora[f"transformer.{name}.lora_A.weight"].float()
                    up = lora[f"transformer.{name}.lora_B.weight"].float()
                    weight = weights[f"{name}.weight"]
                    weights[f"{name}.weight"] = (weight + up @ down).to(weight.dtype)
            save_file(weights, output / shard.name)

    def ours() -> None:
        output = folder / f"ours_{next(numbers)}"
        tool(
            "merge",
            "--base",
            model,
            "--lora",
            folder / "lora.safetensors",
            "--output",
            output,
        )

    return {"ours": ours, "plain": plain}


def extracting(folder: Path, size: int) -> Variants:
    """From a model with a LoRA merged into it; plainly by the whole SVD."""
    works = merging(folder, size)
    works["ours"]()
    base, tuned = folder / "model", folder / "ours_0"
    numbers = count()

    def ours() -> None:
        output = folder / f"{next(numbers)}.safetensors"
        tool("extract", output, "--base", base, "--tuned", tuned, "--rank", 16)

    def plain() -> None:
        tensors = {}
        for shard in (base / "transformer").glob("*.safetensors"):
            before, after = (
                load_file(shard),
                load_file(tuned / "transformer" / shard.name),
            )
            for name, weight in before.items():
                change = after[name].float() - weight.float()
                if weight.dim() == 2 and change.any():
                    u, s, v = torch.linalg.svd(change, full_matrices=False)
                    stem = name.removesuffix(".weight")
                    tensors[f"{stem}.lora_A.weight"] = v[:16].to(DTYPE).contiguous()
                    up = (u[:, :16] * s[:16]).to(DTYPE)
                    tensors[f"{stem}.lora_B.weight"] = up.contiguous()
        save_file(tensors, folder / f"{next(numbers)}.safetensors")

    return {"ours": ours, "plain": plain}


# ------------------------------------------------------------ the page


def first_page(folder: Path, size: int) -> Variants:
    """The answer that lists the runs, of a page that has just started."""
    for number in range(size):
        run = folder / f"run_{number:04}"
        run.mkdir()
        status = {"name": run.name, "status": "finished", "step": 500, "steps": 500}
        (run / "run.json").write_text(json.dumps(status | {"step_s": 1.0, "loss": 0.1}))
        rows = (json.dumps({"step": step, "loss": 1 / step}) for step in range(1, 501))
        (run / "metrics.jsonl").write_text("\n".join(rows))

    def ours() -> None:
        ui = Ui(folder, folder / "datasets", folder / "jobs", "", 0.0)
        client = TestClient(make_app(ui), base_url="http://localhost:8675")
        assert client.get("/").status_code == 200

    return {"ours": ours}


PARTS: dict[str, Part] = {
    "scan": (scanning, 1000),
    "latents": (first_latents, 2),
    "texts": (first_texts, 8),
    "sampling": (sampling, 2),
    "generate": (generating, 1),
    "int8": (quantizing("int8"), 12),
    "int4": (quantizing("int4"), 12),
    "save": (saving, 30),
    "resume": (resuming, 30),
    "merge": (merging, 4),
    "extract": (extracting, 1),
    "convert": (converting, 15),
    "page": (first_page, 500),
}


# ------------------------------------------------------------ the report


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    report.card("around", "CPU seconds, one thread for torch")
    rows = {}
    for name in asked.parts or PARTS:
        rows[name] = measured(PARTS[name], asked)
        told = (f"{key} {value:.2f}" for key, value in rows[name].items())
        print(f"{name:<10}", *told, flush=True)
    report.finish("around", **vars(asked), rows=rows)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--parts", nargs="*", choices=PARTS, help="default: all")
    add("--rounds", type=int, default=7, help="timed calls of each variant and size")
    add("--small", action="store_true", help="sizes of the tests: nothing but overhead")
    return parser.parse_args(argv)


def measured(part: Part, asked: argparse.Namespace) -> dict[str, float]:
    """The figures of a part: milliseconds of the larger size, the growth for `GROWTH`
    times the work as a share of that, the ratio of the minima, and the median of the
    ratios of pairs."""
    make, first = part
    if asked.small:
        first = 1
    ours: list[float] = []
    for size in (first, GROWTH * first):
        with TemporaryDirectory() as folder:
            works = make(Path(folder), size)
            kept = timing.interleave(works, not asked.small, asked.rounds, noisy=True)
        cpu = {name: times.cpu for name, times in kept.times.items()}
        ours.append(min(cpu["ours"]))
    figures = {"size": size, "growth": ours[1] / ours[0] / GROWTH}
    figures |= {f"{name}_ms": 1e3 * min(seconds) for name, seconds in cpu.items()}
    if "plain" in cpu:
        pairs = zip(*cpu.values(), strict=True)
        figures["ratio"] = min(cpu["ours"]) / min(cpu["plain"])
        figures["ratio_of_pairs"] = median(a / b for a, b in pairs)
    return figures


if __name__ == "__main__":
    main()
