"""Says what is in a picture of a mascot: a small convolutional network, trained on
drawn pictures in minutes.

With it one can measure whether a model paints what its caption says. Once trained it is
in a file of the user's cache folder.

Shape suffixes: B batch, H/W height and width in pixels, s the side of what the network
sees, F features, V values."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.functional import cross_entropy, interpolate  # noqa: E402

from benchmarks import mascots  # noqa: E402
from benchmarks.mascots import (  # noqa: E402
    ALL,
    NONE,
    Casting,
    Lots,
    Mascot,
    draw,
    random_mascot,
)
from toolkit.files.writing import atomic_write, sha256_of  # noqa: E402
from toolkit.system.seeding import generator, global_generator  # noqa: E402

SIDE = 64
"""Pixels along a side of what the network sees."""

SEED = 0
TRAINING, FRESH = "classifier training", "classifier fresh"
"""Kinds of lots: no picture is of both."""

PICTURES, STEPS, BATCH = 10_000, 800, 64
LR = 4e-3
IGNORED = -100
"""Instead of a value that a picture does not show, such as the colour of no hat."""


class MascotClassifier(nn.Module):
    """One answer for each attribute."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(widths)):
            kernel = 5 if number == 0 else 3
            layers += [
                nn.Conv2d(before, after, kernel, 2, kernel // 2, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2))
        features = widths[-1] * (SIDE >> (len(widths) - 1)) ** 2
        self.heads = nn.ModuleDict(
            {name: nn.Linear(features, len(values)) for name, values in ALL.items()}
        )

    def forward(self, pixels_B3HW: Tensor) -> dict[str, Tensor]:
        """Attribute -> scores [B, V] of its values in `ALL`. Pixels: in [-1, 1], square
        pictures of any size."""
        pixels_B3ss = pixels_B3HW
        if pixels_B3HW.shape[-2:] != (SIDE, SIDE):
            pixels_B3ss = interpolate(
                pixels_B3HW,
                (SIDE, SIDE),
                mode="bilinear",
                antialias=True,
                align_corners=False,
            )
        features_BF = self.trunk(pixels_B3ss)
        return {name: head(features_BF) for name, head in self.heads.items()}

    @torch.no_grad()
    def attributes(self, pixels_B3HW: Tensor) -> list[dict[str, str]]:
        """What each picture shows: attribute -> value. The colour of a hat means
        nothing where there is none."""
        self.eval()
        answers = {
            name: scores_BV.argmax(1).tolist()
            for name, scores_BV in self(pixels_B3HW).items()
        }
        return [
            {name: ALL[name][answers[name][row]] for name in ALL}
            for row in range(len(pixels_B3HW))
        ]


def pixels_of(pictures: Iterable[Image.Image]) -> Tensor:
    """[B, 3, H, W] in [-1, 1], of pictures of one size."""
    stacked = torch.from_numpy(
        np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    )
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def agreement(
    classifier: MascotClassifier, pixels_B3HW: Tensor, wanted: Sequence[Mascot]
) -> dict[str, float]:
    """Attribute -> share of the pictures that show it as it is wanted; of hats'
    colours, where there is a hat."""
    seen = [
        row for part in pixels_B3HW.split(100) for row in classifier.attributes(part)
    ]
    shares = {}
    for name in ALL:
        pairs = [
            (row[name], getattr(m, name))
            for row, m in zip(seen, wanted, strict=True)
            if _counts(name, m)
        ]
        shares[name] = sum(a == b for a, b in pairs) / max(1, len(pairs))
    return shares


def _counts(attribute: str, shown: Mascot) -> bool:
    return attribute != "hat_colour" or shown.hat != NONE


# ------------------------------------------------------------ training


def trained(folder: Path | None = None) -> MascotClassifier:
    """The classifier, from its file in this folder or trained and left there; the
    user's cache folder by default.

    The file is named after what decides its weights, the drawings included: no old one
    is taken.
    """
    file = (folder or cache_folder()) / f"mascot_classifier_{_recipe()}.safetensors"
    classifier = MascotClassifier()
    if not file.is_file():
        classifier = train()
        with atomic_write(file) as temporary:
            save_file(classifier.state_dict(), temporary)
    classifier.load_state_dict(load_file(file))
    return classifier.eval()


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "atelier"


def _recipe() -> str:
    files = (mascots.__file__, __file__)
    return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()[:12]


def train(pictures: int = PICTURES, steps: int = STEPS) -> MascotClassifier:
    """A new classifier, the same for the same numbers. Mascots of all kinds, reserved
    ones too."""
    shown, pixels_N3ss = drawn(TRAINING, pictures, Casting("any", jitter=1))
    labels = {name: torch.tensor([_label(name, m) for m in shown]) for name in ALL}
    with global_generator(SEED, "classifier"):
        classifier = MascotClassifier().train()
        optimizer = torch.optim.AdamW(classifier.parameters(), LR, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LR, steps, pct_start=0.1
        )
        for step in range(steps):
            draws = generator(SEED, "classifier batch", step)
            rows = torch.randint(pictures, (BATCH,), generator=draws)
            noise_B3ss = torch.randn((BATCH, 3, SIDE, SIDE), generator=draws)
            # samples of a model are never clean
            strength_B111 = 0.15 * torch.rand((BATCH, 1, 1, 1), generator=draws)
            scores = classifier(
                pixels_N3ss[rows] / 127.5 - 1 + strength_B111 * noise_B3ss
            )
            losses = [
                cross_entropy(scores[name], labels[name][rows], ignore_index=IGNORED)
                for name in ALL
            ]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


def _label(attribute: str, shown: Mascot) -> int:
    return (
        ALL[attribute].index(getattr(shown, attribute))
        if _counts(attribute, shown)
        else IGNORED
    )


def drawn(kind: str, count: int, casting: Casting) -> tuple[list[Mascot], Tensor]:
    """Mascots, and their pictures as uint8 [N, 3, s, s]."""
    shown = [random_mascot(Lots(SEED, kind, index), casting) for index in range(count)]
    pictures = np.stack([np.asarray(draw([m], SIDE, SIDE)) for m in shown])
    return shown, torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
