"""How many planted faults are found, and how many findings are right: photographs and
drawn pictures, some spoiled."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from extensions.tools.lint.checks import run_checks
from extensions.tools.lint.dataset import read_datasets
from tests.extensions.tools.lint.conftest import picture
from tests.running import section_of

EXAMPLES = Path(__file__).parents[4] / "config" / "examples"
Spoil = Callable[[Image.Image, Random], Image.Image]


def _photographs() -> list[Image.Image]:
    paths = sorted(EXAMPLES.glob("photos/*/*.jpg"))
    shown = [
        Image.open(path).convert("RGB")
        for path in paths
        if path.stem != "astronaut_face"
    ]
    return shown + [picture(seed, 400, 320) for seed in range(2)]


def _scaled(
    image: Image.Image,
    factor: float,
    kernel: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    return image.resize(
        (round(image.width * factor), round(image.height * factor)), kernel
    )


def _enlarged(factor: float, kernel: Image.Resampling) -> Spoil:
    return lambda image, _: _scaled(image, 1 / factor).resize(image.size, kernel)


def _compressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _cut(share: float) -> Spoil:
    def cut(image: Image.Image, random: Random) -> Image.Image:
        width, height = (round(side * (1 - share)) for side in image.size)
        left, top = (
            random.randint(0, image.width - width),
            random.randint(0, image.height - height),
        )
        return image.crop((left, top, left + width, top + height))

    return cut


def _with_hole(image: Image.Image, random: Random) -> Image.Image:
    image = image.convert("RGBA")
    ImageDraw.Draw(image).ellipse((40, 40, 140, 120), fill=(0, 0, 0, 0))
    return image


BICUBIC, LANCZOS, BILINEAR = (
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
    Image.Resampling.BILINEAR,
)

SPOILED: dict[str, tuple[str, Spoil]] = {
    "blur 2": ("blurred", lambda image, _: image.filter(ImageFilter.GaussianBlur(2))),
    "blur 3": ("blurred", lambda image, _: image.filter(ImageFilter.GaussianBlur(3))),
    "blur 5": ("blurred", lambda image, _: image.filter(ImageFilter.GaussianBlur(5))),
    "box 4": ("blurred", lambda image, _: image.filter(ImageFilter.BoxBlur(4))),
    "times 2": ("enlarged", _enlarged(2, BICUBIC)),
    "times 2.5": ("enlarged", _enlarged(2.5, LANCZOS)),
    "times 3": ("enlarged", _enlarged(3, BILINEAR)),
    "times 4": ("enlarged", _enlarged(4, BICUBIC)),
    "tiny": ("tiny", lambda image, _: _scaled(image, 100 / max(image.size))),
    "long": (
        "aspect",
        lambda image, _: image.crop((0, 0, image.width, image.height // 5)),
    ),
    "hole": ("transparent", _with_hole),
    "clear": (
        "transparent",
        lambda image, _: Image.merge(
            "RGBA", (*image.split(), Image.new("L", image.size))
        ),
    ),
    "print": ("mode", lambda image, _: image.convert("CMYK")),
}
"""Instead of a picture of the folder: what is to be found, and how it is made."""

TWICE: dict[str, Spoil] = {
    "resized": lambda image, _: _scaled(image, 0.7),
    "saved again": lambda image, _: _compressed(image, 40),
    "cut by 3 %": _cut(0.03),
    "cut by 8 %": _cut(0.08),
    "mirrored": lambda image, _: ImageOps.mirror(image),
    "mirrored and cut": lambda image, random: ImageOps.mirror(
        _cut(0.04)(image, random)
    ),
    "brightened": lambda image, _: _compressed(
        image.point(lambda value: min(255, round(value * 1.1 + 6))), 80
    ),
}
"""Beside a picture of the folder: `duplicate`."""

CAPTIONS = {
    "": "no_caption",
    "zxq": "no_caption",
    "[trigger]": "no_caption",
    "a thing on a table": "trigger",
    "Zxq on a table": "trigger",
    "a zxqueue on a table": "trigger",
    "zxq on a \ufffd table": "garbled",
    "zxq in a cafÃ© with a friend": "garbled",
    "zxq, {trigger}, on a table": "garbled",
    "zxq &quot;on a table&quot;": "garbled",
    "zxq on a table ???? ?????": "garbled",
    "zxq ;;;; %% ## --- ~~ @@": "garbled",
    "zxq with Fran\\u00e7ois": "garbled",
}
"""Instead of a good caption -> what is to be found."""


def found_in(*flags: str) -> set[tuple[str, str]]:
    config = section_of("lint", flags)
    findings = [
        each
        for data in read_datasets(config, lambda *_: None)
        for each in run_checks(data, config)
    ]
    return {(each.check, Path(each.place).name) for each in findings}


def plant(
    folder: Path, pictures: list[Image.Image], seed: int
) -> list[tuple[set, set]]:
    """Planted and found faults of several folders, each of all `pictures`, of which a
    third is spoiled."""
    random, results = Random(seed), []
    wrong, twice, captions = (
        list(SPOILED.items()),
        list(TWICE.items()),
        list(CAPTIONS.items()),
    )
    for number in range(max(len(wrong), len(twice), len(captions))):
        here, planted = folder / f"set{number}", set()
        here.mkdir()
        order = random.sample(range(len(pictures)), len(pictures))
        for place, index in enumerate(order):
            image, text, suffix = pictures[index], f"zxq at place {index}", "jpg"
            if place == 0:
                check, spoil = wrong[number % len(wrong)][1]
                image = spoil(image, random)
                suffix = (
                    "png"
                    if image.mode == "RGBA"
                    or (random.random() < 0.5 and image.mode == "RGB")
                    else "jpg"
                )
                planted.add((check, f"{index}.{suffix}"))
            elif place == 1:
                twice[number % len(twice)][1](image, random).save(
                    here / f"{index}_b.jpg", quality=92
                )
                (here / f"{index}_b.txt").write_text(f"zxq once more {index}")
                planted.add(("duplicate", f"{index}_b.jpg"))
            elif place == 2:
                text, check = captions[number % len(captions)]
                planted.add((check, f"{index}.jpg"))
            image.save(
                here / f"{index}.{suffix}",
                **({"quality": 92} if suffix == "jpg" else {}),
            )
            (here / f"{index}.txt").write_text(text, encoding="utf-8")
        (here / "torn.jpg").write_bytes((here / f"{order[3]}.jpg").read_bytes()[:5000])
        (here / "phone.heic").write_bytes(b"\0\0\0\x1cftypheic")
        (here / "design.psd").write_bytes(b"8BPS")
        planted |= {
            ("unusable", "torn.jpg"),
            ("unusable", "phone.heic"),
            ("unused", "design.psd"),
        }
        results.append(
            (
                planted,
                found_in(str(here), "--resolution", "512", "--trigger-word", "zxq"),
            )
        )
    return results


EDITS: list[Spoil] = [
    lambda image, _: image.convert("L").convert("RGB"),
    lambda image, _: ImageOps.posterize(image, 2),
    lambda image, _: image.filter(ImageFilter.GaussianBlur(1.5)),  # pairs that restore
    lambda image, _: ImageOps.invert(image),
    lambda image, random: _pasted(image, random),
]


def _pasted(image: Image.Image, random: Random) -> Image.Image:
    image, side = image.copy(), min(image.size) // 2
    left, top = (
        random.randint(0, image.width - side),
        random.randint(0, image.height - side),
    )
    image.paste((200, 30, 60), (left, top, left + side, top + side))
    return image


def plant_pairs(
    folder: Path, pictures: list[Image.Image], seed: int
) -> list[tuple[set, set]]:
    """The same of pairs, each of another edit: two references exchanged, two that change
    nothing, one of no image."""
    random, results = Random(seed), []
    for number in range(2):
        after, before = folder / f"after{number}", folder / f"before{number}"
        after.mkdir()
        before.mkdir()
        order = random.sample(range(len(pictures)), len(pictures))
        references = {
            index: EDITS[(index + number) % len(EDITS)](pictures[index], random)
            for index in order
        }
        one, two, same, resaved, alone = order[:5]
        # of one shape, or it is told
        references[one], references[two] = (
            references[two].resize(references[one].size),
            references[one].resize(references[two].size),
        )
        references[same] = pictures[same]
        references[resaved] = _compressed(_scaled(pictures[resaved], 0.8), 50)
        for index in order:
            pictures[index].save(after / f"{index}.jpg", quality=92)
            references[index].save(before / f"{index}.jpg", quality=90)
        (before / f"{alone}.jpg").rename(before / "alone.jpg")
        planted = {
            ("pair_order", f"{one}.jpg"),
            ("pair_order", f"{two}.jpg"),
            ("unpaired", "alone.jpg"),
        }
        planted |= {("same_as_reference", f"{each}.jpg") for each in (same, resaved)}
        planted.add(("unusable", f"{alone}.jpg"))
        pairs = (
            "--control-path",
            str(before),
            "--default-caption",
            "edit it",
            "--resolution",
            "512",
        )
        results.append((planted, found_in(str(after), *pairs)))
    return results


@pytest.mark.slow
def test_planted_faults_are_found_and_good_pictures_are_not_called_bad(
    tmp_path: Path,
) -> None:
    score(
        plant(tmp_path, _photographs(), seed=0)
        + plant_pairs(tmp_path, _photographs(), seed=0)
    )


def score(results: list[tuple[set, set]]) -> None:
    planted, found = (sum(len(each[part]) for each in results) for part in (0, 1))
    right = sum(len(planted & found) for planted, found in results)
    missed = [planted - found for planted, found in results]
    wrong = [found - planted for planted, found in results]
    assert planted >= 60
    assert not {"pair_order", "duplicate"} & {
        check for each in missed for check, _ in each
    }, f"missed: {missed}"
    assert right / planted >= 0.95, f"missed: {missed}"
    assert right / found >= 0.95, f"wrong: {wrong}"
