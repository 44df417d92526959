"""What the ways to round a base cost: its weights, its velocity, and the samples of the
trained small model.

`python benchmarks/bench_quantization.py --samples 16 --judged`: the weights of the
small model's blocks in bfloat16 are quantized in each way and put back, all else is
computed in float32. The velocity is compared at every step of the unquantized samples,
the samples by their pixels, and with `--judged` by what a classifier sees in them. nf4
is bitsandbytes's and not a type of the program.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "config" / "examples" / "extensions", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import torch  # noqa: E402
from mascots.mascot import Casting, Lots, random_mascot  # noqa: E402
from mascots.words import caption  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks import report  # noqa: E402
from benchmarks.mascot_classifier import MascotClassifier, agreement, pixels_of, trained  # noqa: E402
from benchmarks.mascot_model import NAMED, SEED, TinyModel, load  # noqa: E402
from toolkit.contracts.model import DiffusionModel  # noqa: E402
from toolkit.memory.quantization import quantize_weight  # noqa: E402

MODEL = ROOT / "config" / "examples" / "tiny_mascots"


def by_type(qtype: str, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The weights of a type of the program, whose codes are computed in `dtype`."""

    def rounded(weight_OI: Tensor) -> Tensor:
        quantized: Any = quantize_weight(weight_OI.to(dtype), qtype)
        # products have the codes and the scales, not rounded weights
        if qtype == "int8":
            return quantized.codes_OI.float() * quantized.scale_O1.float()
        return quantized.dequantize().float()

    return rounded


def nf4(weight_OI: Tensor) -> Tensor:
    """NF4 in blocks of 64 with 8-bit scales (QLoRA's double quantization)."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(
        weight_OI.bfloat16(), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    return dequantize_4bit(codes, state).float().view_as(weight_OI)


WAYS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "int8, computed in bfloat16": (8.01, by_type("int8", torch.bfloat16)),
    "int8, computed in float32": (8.01, by_type("int8", torch.float32)),
    "int4": (4.25, by_type("int4", torch.bfloat16)),
    "nf4, 64, double scales": (4.13, nf4),
    "uint4": (4.38, by_type("uint4", torch.bfloat16)),
    "int4, computed in float32": (4.25, by_type("int4", torch.float32)),
}
"""Way -> bits of a weight that is 3,072 wide, and what it makes of a weight."""


class Replayed:
    """The model's predictions in a set of samples: what they were asked, and what they
    were."""

    def __init__(self, model: DiffusionModel) -> None:
        self.calls: list[tuple[tuple, Tensor]] = []
        self.model = model
        self._own = model.sampling_steps
        model.sampling_steps = self._steps  # type: ignore[method-assign]

    def _steps(self, prompts: Any, references: Any) -> Callable[..., Tensor]:
        def predict(x_t_BCHW: Tensor, t_B: Tensor, *guidance: Any) -> Tensor:
            call = (x_t_BCHW.clone(), t_B.clone(), prompts, references, *guidance)
            velocity = self.model.predict_velocity(*call)
            self.calls.append((call, velocity.detach().clone()))
            return velocity

        return predict

    def stop(self) -> None:
        self.model.sampling_steps = self._own  # type: ignore[method-assign]

    @torch.no_grad()
    def error(self) -> float:
        """Relative error of the velocities with the present weights."""
        wrong = total = 0.0
        for call, before in self.calls:
            wrong += float((self.model.predict_velocity(*call) - before).square().sum())
            total += float(before.square().sum())
        return (wrong / total) ** 0.5


def linear_weights(module: nn.Module) -> list[nn.Parameter]:
    """Of the blocks, which are what `model.quantize` quantizes."""
    blocks: Any = module.get_submodule("transformer_blocks")
    return [layer.weight for layer in blocks.modules() if isinstance(layer, nn.Linear)]


@torch.no_grad()
def measure(
    samples: int, classifier: MascotClassifier | None
) -> list[tuple[str, list[str]]]:
    """Way -> its figures, as they are printed."""
    tiny = TinyModel(load(str(MODEL)), classifier or MascotClassifier())
    weights = linear_weights(tiny.model.network_module)
    for weight in weights:
        weight.copy_(weight.bfloat16())
    own = [weight.clone() for weight in weights]
    wanted = [random_mascot(Lots(SEED, "text", index), Casting("held_out" if index % 2 else "pretraining"))
              for index in range(samples)]  # fmt: skip
    prompts = [caption(mascot) for mascot in wanted]

    def judged(pixels_B3HW: Tensor) -> str:
        shares = agreement(tiny.classifier, pixels_B3HW, wanted)
        return (
            f"{sum(shares[name] for name in NAMED) / len(NAMED):.1%}"
            if classifier
            else ""
        )

    calls = Replayed(tiny.model)
    drawn_B3HW = pixels_of(tiny.samples(prompts))
    calls.stop()
    rows = [("unquantized bfloat16", ["16", "0", "0", "0", judged(drawn_B3HW)])]
    for name, (bits, way) in WAYS.items():
        wrong = total = 0.0
        for weight, before in zip(weights, own, strict=True):
            weight.copy_(way(before))
            wrong += float((weight - before).square().sum())
            total += float(before.square().sum())
        velocity = calls.error()
        pixels_B3HW = pixels_of(tiny.samples(prompts))
        rms = float((pixels_B3HW - drawn_B3HW).square().mean().sqrt()) * 127.5
        figures = [
            f"{bits:g}",
            f"{(wrong / total) ** 0.5:.5f}",
            f"{velocity:.5f}",
            f"{rms:.2f}",
            judged(pixels_B3HW),
        ]
        rows.append((name, figures))
        print(name, *figures, flush=True)
    return rows


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument(
        "--judged",
        action="store_true",
        help="also by a classifier, which is trained once, in minutes",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    report.card(
        "quantization",
        f"{asked.samples} samples of the tiny mascots, 8 steps at guidance 2",
    )
    rows = measure(asked.samples, trained() if asked.judged else None)
    print(
        "| way | bits | weights | velocity | samples, RMS of 255 | attributes as asked |\n|---|---|---|---|---|---|"
    )
    for name, figures in rows:
        print(f"| {name} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
