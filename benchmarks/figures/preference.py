"""Does it learn what somebody likes? Votes on samples of the small model, judged by the
classifier.

Parts:
- `colour`: prompts leave the colour of a mascot open; of two samples of each, the one
  of the liked colour is better. Then samples of unseen prompts show how often they have
  it, and whether what other prompts name stays. Beside it plain training on the better
  images with as many steps, and the votes exchanged;
- `edits`: of two results of one edit, the one that keeps its reference is better;
- `times`: a step of a pair against two ordinary micro-batches, by turns.

`python benchmarks/figures/preference.py` measures all; `--part colour --beta 500 2000`
a sweep.

Shape suffixes: B batch, C channels, H/W latent height and width."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT / "config" / "examples" / "extensions", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import torch  # noqa: E402
from mascots.drawing import draw  # noqa: E402
from mascots.mascot import Casting, Lots, Mascot, Pair, random_mascot  # noqa: E402
from mascots.words import caption, edit  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks import report, timing  # noqa: E402
from benchmarks.mascot_classifier import MascotClassifier, agreement, pixels_of, trained  # noqa: E402
from benchmarks.mascot_model import SIDE, TinyModel, load  # noqa: E402
from toolkit.config.sections.train import PreferenceConfig  # noqa: E402
from toolkit.contracts.data import BatchSpec, PromptEmbeds, Size  # noqa: E402
from toolkit.data.batches.dataloader import LatentBatch  # noqa: E402
from toolkit.flow.sampler import euler_sample, sigmas  # noqa: E402
from toolkit.networks.lora import LoraNetwork  # noqa: E402
from toolkit.train.flow_step import NETWORK, FlowMatchingStep  # noqa: E402
from toolkit.train.preference import PreferenceStep  # noqa: E402
from toolkit.train.sampling import to_pil  # noqa: E402

MODEL = ROOT / "config" / "examples" / "tiny_mascots"
SEED, STEPS, TOGETHER = 7, 8, 20
NAMED = ("pose", "place", "hat", "colour")
LOOKS = ("body", "colour", "mark")
"""What an edit has to keep of a mascot unless it says otherwise."""

VOTING, GUIDANCE = 1.0, 2.0
"""Guidance of the candidates, which are to differ, and of the samples that are
judged."""

Figures = dict[str, float]
Vote = tuple[str, str, str, str]
"""The better image, the worse one, the prompt, the control image or nothing."""


@torch.no_grad()
def drawn(
    tiny: TinyModel,
    prompts: Sequence[str],
    references: Sequence[Image.Image] = (),
    first: int = SEED,
) -> list[Image.Image]:
    """As `TinyModel.samples`, with one reference each, and many in a pass. first: the
    seed of the first one."""
    model, side = tiny.model, SIDE // 8
    found: list[Image.Image] = []
    for begin in range(0, len(prompts), TOGETHER):
        rows = range(begin, min(begin + TOGETHER, len(prompts)))
        pictures = [[references[row]] if references else [] for row in rows]
        controls = [
            tuple(model.encode_images(pixels_of([one]))[0] for one in of_row)
            for of_row in pictures
        ]
        asked = [prompts[row] for row in rows]
        texts = [asked, [model.family.empty_negative] * len(asked)][
            : 1 + (tiny.guidance > 1)
        ]
        embeds = [
            PromptEmbeds.stack(
                [
                    model.encode_prompt(text, of_row)
                    for text, of_row in zip(some, pictures, strict=True)
                ]
            )
            for some in texts
        ]

        def velocity(
            x_t_BCHW: Tensor,
            t_B: Tensor,
            embeds: Any = embeds,
            controls: Any = controls,
        ) -> Tensor:
            t_B = model.sampling_level(t_B)
            cond_BCHW, *uncond = [
                model.predict_velocity(x_t_BCHW, t_B, each, controls) for each in embeds
            ]
            return (
                model.apply_cfg(cond_BCHW, uncond[0], tiny.guidance)
                if uncond
                else cond_BCHW
            )

        shape = model.family.latent_channels, side, side
        noise = [
            torch.randn(shape, generator=torch.Generator().manual_seed(first + row))
            for row in rows
        ]
        shift = model.dynamic_shift
        levels = sigmas(
            tiny.steps,
            shift.mu(model.family.tokens(Size(side, side)), tiny.steps),
            shift.shift_terminal,
        )
        pixels = model.decode_latents(
            euler_sample(velocity, torch.stack(noise), levels)
        )
        found += [to_pil(one[None]) for one in pixels]
    return found


def train(
    folder: Path,
    name: str,
    table: Path,
    asked: argparse.Namespace,
    preference: Figures | None,
) -> Path:
    """A LoRA file; preference: None for plain training on the better images."""
    section: dict[str, Any] = {
        "type": "sd_trainer",
        "training_folder": str(folder),
        "training_seed": SEED,
        "network": {"type": "lora", "linear": 16, "linear_alpha": 16},
        "datasets": [{"captions_file": str(table), "resolution": SIDE}],
        "train": {
            "batch_size": 4,
            "steps": asked.steps,
            "lr": asked.lr,
            "optimizer": "adamw",
            "dtype": "fp32",
        },
        "model": {
            "name_or_path": str(MODEL),
            "model_kwargs": {"match_target_res": True},
        },
    }
    section["train"] |= {
        "gradient_checkpointing": False,
        "ema_config": {"use_ema": True, "ema_decay": 0.98},
    }
    if preference is not None:
        section["train"]["preference"] = preference
    job = folder / f"{name}.json"
    job.write_text(
        json.dumps(
            {"job": "extension", "config": {"name": name, "process": [section]}}
        ),
        encoding="utf-8",
    )
    subprocess.run(
        [sys.executable, str(ROOT / "run.py"), str(job)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return folder / name / f"{name}.safetensors"


def write_votes(votes: Iterator[Vote], folder: Path, wanted: int) -> None:
    """Two tables: the votes, and these exchanged."""
    rows = [vote for vote, _ in zip(votes, range(wanted), strict=False)]
    for name, order in (("votes", (0, 1)), ("exchanged", (1, 0))):
        lines = [
            {"better": row[order[0]], "worse": row[order[1]], "prompt": row[2]}
            for row in rows
        ]
        lines = [
            line | ({"control": row[3]} if row[3] else {})
            for line, row in zip(lines, rows, strict=True)
        ]
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
        )


@dataclass(frozen=True)
class Taste:
    """What somebody likes, as the classifier sees it."""

    classifier: MascotClassifier
    liked: str

    def tiny(self, lora: str = "", guidance: float = GUIDANCE) -> TinyModel:
        return TinyModel(load(str(MODEL), lora), self.classifier, STEPS, guidance)


def decided(
    folder: Path, name: str, pair: Sequence[Image.Image], likes: Sequence[bool]
) -> tuple[str, str] | None:
    """Writes the images of a pair of which one is liked; the names of the better and
    the worse one."""
    if sum(likes) != 1:
        return None
    names = []
    for liked, picture in sorted(
        zip(likes, pair, strict=True), key=lambda one: not one[0]
    ):
        names.append(f"{name}_{'better' if liked else 'worse'}.png")
        picture.save(folder / names[-1])
    return names[0], names[1]


# ------------------------------------------------------------ parts


def mascots(kind: str, count: int) -> list[Mascot]:
    return [
        random_mascot(Lots(SEED, kind, index), Casting("pretraining"))
        for index in range(count)
    ]


def without_colour(mascot: Mascot) -> str:
    """Its caption, the colour of its body left open."""
    return caption(mascot).replace(f" {mascot.colour} ", " ", 1)


def colour_votes(taste: Taste, folder: Path) -> Iterator[Vote]:
    tiny = taste.tiny(guidance=VOTING)
    for number in range(100):
        prompts = [
            without_colour(mascot)
            for mascot in mascots(f"votes {number}", 2 * TOGETHER)
        ]
        pictures = drawn(tiny, prompts * 2, first=1000 * number)
        likes = [row["colour"] == taste.liked for row in tiny.seen(pictures)]
        for index, prompt in enumerate(prompts):
            pair = slice(index, None, len(prompts))
            if names := decided(
                folder, f"{number}_{index}", pictures[pair], likes[pair]
            ):
                yield (*names, prompt, "")


def colour_figures(taste: Taste, lora: str, count: int) -> Figures:
    """The share of the liked colour where it is open, and of what other prompts
    name."""
    tiny, named = taste.tiny(lora), mascots("named", count)
    openly = tiny.seen(
        drawn(tiny, [without_colour(mascot) for mascot in mascots("unseen", count)])
    )
    shares = agreement(
        taste.classifier,
        pixels_of(drawn(tiny, [caption(mascot) for mascot in named])),
        named,
    )
    liked = sum(row["colour"] == taste.liked for row in openly) / count
    return {taste.liked: liked, **{name: shares[name] for name in NAMED}}


def edit_of(kind: int, index: int) -> tuple[Pair, Image.Image]:
    """An edit of a character that the model does not know, and its reference."""
    pair = edit(kind, index, Casting("reserved"))
    return pair, draw([pair.before[0]], SIDE, SIDE)


def judged(pair: Pair, row: dict[str, str]) -> tuple[bool, bool]:
    """Whether the looks of the reference are kept, and whether what was asked for is
    there."""
    before, after = pair.before[0], pair.after[0]
    changed = [
        name
        for name in row
        if getattr(before, name, None) != getattr(after, name, None)
    ]
    kept = all(
        row[name] == getattr(before, name) for name in LOOKS if name not in changed
    )
    return kept, all(
        row[name] == getattr(after, name) for name in changed if name != "hat_colour"
    )


def edit_votes(taste: Taste, folder: Path) -> Iterator[Vote]:
    tiny = taste.tiny(guidance=VOTING)
    for number in range(100):
        edits = [
            edit_of(SEED + 1, number * TOGETHER + index) for index in range(TOGETHER)
        ]
        prompts, references = (
            [pair.instruction for pair, _ in edits],
            [picture for _, picture in edits],
        )
        pictures = drawn(tiny, prompts * 2, references * 2, first=1000 * number)
        likes = [
            judged(pair, row)[0]
            for (pair, _), row in zip(edits * 2, tiny.seen(pictures), strict=True)
        ]
        for index, prompt in enumerate(prompts):
            pair = slice(index, None, TOGETHER)
            if names := decided(
                folder, f"{number}_{index}", pictures[pair], likes[pair]
            ):
                references[index].save(folder / f"{number}_{index}_before.png")
                yield (*names, prompt, f"{number}_{index}_before.png")


def edit_figures(taste: Taste, lora: str, count: int) -> Figures:
    """Share of unseen edits that keep the looks of their reference, and of those that
    do what was asked."""
    tiny, edits = taste.tiny(lora), [edit_of(SEED + 2, index) for index in range(count)]
    pictures = drawn(
        tiny, [pair.instruction for pair, _ in edits], [picture for _, picture in edits]
    )
    found = [
        judged(pair, row)
        for (pair, _), row in zip(edits, tiny.seen(pictures), strict=True)
    ]
    return {
        "kept": sum(kept for kept, _ in found) / count,
        "done": sum(done for _, done in found) / count,
    }


PARTS: dict[
    str,
    tuple[
        Callable[[Taste, Path], Iterator[Vote]], Callable[[Taste, str, int], Figures]
    ],
] = {
    "colour": (colour_votes, colour_figures),
    "edits": (edit_votes, edit_figures),
}


def learned(part: str, taste: Taste, asked: argparse.Namespace) -> dict[str, Figures]:
    votes, figures = PARTS[part]
    found: dict[str, Figures] = {}

    def line(name: str, lora: str, seconds: float = 0) -> None:
        found[name] = figures(taste, lora, asked.count)
        shares = ", ".join(f"{what} {share:.0%}" for what, share in found[name].items())
        print(f"{part:<7} {name:<14} {shares}, {seconds:.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_votes(votes(taste, folder), folder, asked.pairs)
        line("before", "")
        runs = [(f"beta {beta:g}", "votes", {"beta": beta}) for beta in asked.beta]
        others = [
            ("plain", "votes", None),
            ("exchanged", "exchanged", {"beta": asked.beta[0]}),
        ]
        for name, table, preference in runs + ([] if asked.sweep else others):
            began = time.perf_counter()
            lora = train(
                folder,
                name.replace(" ", "_"),
                folder / f"{table}.jsonl",
                asked,
                preference,
            )
            line(name, str(lora), time.perf_counter() - began)
    return found


def times(rounds: int = 20) -> Figures:
    """CPU seconds of a step of one pair, and of two ordinary micro-batches of one
    image, by turns."""
    model = load(str(MODEL))
    network = LoraNetwork(model.lora_targets(), 16, 16, seed=SEED, dropout=0.0)
    network.attach(model.network_module)
    latents_BCHW = torch.randn(2, model.family.latent_channels, SIDE // 8, SIDE // 8)
    prompts = PromptEmbeds.stack([model.encode_prompt("a round mascot", [])])
    one, other = (
        LatentBatch(
            latents_BCHW[row : row + 1],
            prompts,
            ((),),
            BatchSpec(0, (0,), (row,)),
            ("a",),
            torch.ones(1),
        )
        for row in range(2)
    )
    pair = replace(one, worse=(latents_BCHW[1],))
    plain = FlowMatchingStep(model, SEED)
    compared = PreferenceStep(model, SEED, PreferenceConfig(), network.disabled)
    seconds = {"pair": 0.0, "two micro-batches": 0.0}
    for number in range(rounds + 2):
        for name, work in (
            ("pair", [(compared, pair)]),
            ("two micro-batches", [(plain, one), (plain, other)]),
        ):
            began = time.process_time()
            for step, batch in work:
                step(batch).by_role[NETWORK].sum().backward()
            seconds[name] += (time.process_time() - began) * (number >= 2)
    print(
        f"times   a pair takes {seconds['pair'] / seconds['two micro-batches']:.2f} of two micro-batches",
        flush=True,
    )
    return seconds


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--part", nargs="*", choices=[*PARTS, "times"], default=[*PARTS, "times"])
    add("--beta", type=float, nargs="*", default=[PreferenceConfig().beta])
    add("--liked", default="pink", help="a colour that the model paints now and then")
    add("--pairs", type=int, default=60)
    add("--steps", type=int, default=150)
    add("--lr", type=float, default=1e-3)
    add("--count", type=int, default=100, help="samples of each kind")
    add("--sweep", action="store_true", help="the values of beta alone")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    asked = arguments(argv)
    timing.one_thread()
    report.card(
        "preference",
        f"{asked.pairs} pairs, {asked.steps} steps, {asked.count} samples of each kind",
    )
    found: dict[str, Any] = {
        part: times()
        if part == "times"
        else learned(part, Taste(trained(), asked.liked), asked)
        for part in asked.part
    }
    report.finish("preference", figures=found)


if __name__ == "__main__":
    main()
