"""Trains the small model that shows whether the architecture of Qwen-Image-2.1 learns: a transformer of that class on
the autoencoder of the tiny mascots, with a frozen Qwen3 of random weights.

`python benchmarks/pretrain_single_stream.py output/single_stream` draws, encodes and trains, on a core in about 80
minutes; then `python benchmarks/bench_learning.py --model output/single_stream/single_stream/single_stream`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import yaml  # noqa: E402
from transformers import Qwen3Config, Qwen3Model  # noqa: E402

import run  # noqa: E402
from extensions.from_scratch.latent_flow.text import make_tokenizer  # noqa: E402
from toolkit.system.seeding import global_generator  # noqa: E402

EXAMPLES = ROOT / "config" / "examples"
MAX_TOKENS = 64


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("output/single_stream"))
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--share", type=float, default=1.0, help="of the pictures and pairs")
    return parser.parse_args(argv)


def drawings(folder: Path, share: float) -> list[dict[str, Any]]:
    """Mascots with captions, and edits with one and two references; those of strangers are in their pictures alone."""
    counts: dict[str, dict[str, Any]] = {
        "pictures": {"count": 5000, "edits": 2000, "edits_of_two": 2500, "seed": 3},
        "strangers": {"count": 0, "edits": 2000, "edits_of_two": 2500, "mascots": "random", "seed": 4},
        "patterned": {"count": 2000, "mascots": "patterned", "seed": 8},
    }
    found = []
    for name, own in counts.items():
        scaled = {key: round(own[key] * share) for key in ("count", "edits", "edits_of_two") if key in own}
        found.append({"type": "mascots", "name": name, "path": str(folder / name), "size": 128, **own, **scaled})
    return found


def training(folder: Path, steps: int) -> dict[str, Any]:
    """The trainer's section."""
    after = [
        (folder / name / kind, references)
        for kind, references in (("edits", 1), ("edits_of_two", 2))
        for name in ("pictures", "strangers")
    ]
    datasets: list[dict[str, Any]] = [
        {"folder_path": str(folder / name / "pictures")} for name in ("pictures", "patterned")
    ] + [
        {"folder_path": str(of / "after"), "control_path": [str(of / f"picture_{i + 1}") for i in range(references)]}
        for of, references in after
    ]
    return {
        "type": "flow_trainer",
        "name": "single_stream",
        "training_folder": str(folder),
        "device": "cpu",
        "training_seed": 21,
        "model": {
            "transformer": {
                "class_name": "QwenImage21Transformer2DModel",
                "config": {"num_layers": 5, "num_attention_heads": 4, "attention_head_dim": 32, "patch_size": 2},
            },
            "vae": str(EXAMPLES / "tiny_mascots" / "vae"),
            "text_encoder": {"name_or_path": str(folder / "encoder"), "max_tokens": MAX_TOKENS},
        },
        "train": {
            "steps": steps,
            "batch_size": 32,
            "group_by_length": True,
            "dtype": "fp32",
            "optimizer": "muon",
            "optimizer_params": {"weight_decay": 0},
            "lr": 0.012,
            "lr_scheduler": "cosine",
            "lr_warmup_steps": 200,
            "max_grad_norm": 1,
            "timestep_type": "sigma",
            "weighting_scheme": "logit_normal",
            "logit_mean": 0.2,
            "logit_std": 1.4,
            "gradient_checkpointing": False,
            "ema_config": {"use_ema": True, "ema_decay": 0.999},
        },
        "save": {"save_every": 500, "max_step_saves_to_keep": 1, "dtype": "fp16"},
        "datasets": [{**dataset, "resolution": 128, "caption_dropout_rate": 0.1} for dataset in datasets],
    }


def write_encoder(folder: Path, captions: Sequence[str]) -> None:
    """A Qwen3 of random weights whose words are those of the captions. Its final norm is as uneven as a trained one."""
    tokenizer = make_tokenizer(captions, MAX_TOKENS, 1000)
    with global_generator(0, "text encoder"):
        encoder = Qwen3Model(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
            )
        )
        torch.nn.init.uniform_(encoder.norm.weight, 0.1, 2)
        torch.nn.init.normal_(encoder.embed_tokens.weight)  # unlike words are far apart
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    folder = asked.folder.resolve()
    _run(folder, "drawings", drawings(folder, asked.share))
    if not (folder / "encoder").is_dir():
        captions = [file.read_text(encoding="utf-8").strip() for file in sorted(folder.glob("*/**/*.txt"))]
        write_encoder(folder / "encoder", captions)
    _run(folder, "single_stream", [training(folder, asked.steps)])


def _run(folder: Path, name: str, sections: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    job = {"job": "extension", "config": {"name": name, "process": sections}}
    file.write_text(yaml.safe_dump(job, sort_keys=False), encoding="utf-8")
    if failed := run.main([str(file)]):
        sys.exit(failed)


if __name__ == "__main__":
    main()
