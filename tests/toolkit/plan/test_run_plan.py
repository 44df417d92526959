from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.toolkit.data.conftest import make_dataset, make_image
from toolkit.contracts.data import BucketedSample, Mask, Sample, Size
from toolkit.data.batches.epoch_order import count_batches
from toolkit.data.scan.folder import ConvertedImage, FolderInfo, scan_datasets
from toolkit.data.scan.items import cover, make_items
from toolkit.data.scan.masks import MaskLook
from toolkit.data.streams.counts import optimizer_steps
from toolkit.models.families import Download
from toolkit.plan.outlook import (
    DiskOutlook,
    ModelOutlook,
    Outlook,
    StartOutlook,
    TimeOutlook,
)
from toolkit.plan.run_plan import RunPlan, batch_note, folder_plans


def make_folder(
    name: str, images: int, repeats: int, size=(1024, 1024), references: int = 0
):
    controls = (Path("r.png"),) * references
    samples = tuple(
        Sample(f"{name}/{i}.png", "", repeats, Size(*size), name, controls)
        for i in range(images)
    )
    return FolderInfo(0, name, repeats, samples, missing_captions=1)


def make_plan(
    folders,
    resolutions=(1024,),
    batch_size=1,
    accumulation=4,
    steps=3400,
    epochs=0,
    **more,
) -> RunPlan:
    items = make_items(
        [s for f in folders for s in f.samples], lambda _: resolutions, 32
    )
    batches = count_batches(items, batch_size)
    return RunPlan(
        type="sd_trainer",
        name="my_char",
        datasets=folder_plans(folders, items),
        samples_per_epoch=sum(item.sample.repeats for item in items),
        micro_batches_per_epoch=batches,
        optimizer_steps=optimizer_steps(steps, epochs, batches, accumulation),
        accumulation=accumulation,
        requested_epochs=epochs,
        **more,
    )


SEED_001 = [
    make_folder("data/40_char", 70, 40),
    make_folder("data/20_style", 30, 20, references=1),
]


def test_seed_001_in_the_words_of_the_documentation() -> None:
    plan = make_plan(SEED_001)
    assert (plan.samples_per_epoch, plan.optimizer_steps, plan.epochs) == (
        3400,
        3400,
        4,
    )
    assert (
        "70 x 40 + 30 x 20 = 3,400 samples per epoch in 3,400 batches, "
        "4 for each step: 850 steps; 3,400 steps = 4 epochs" in plan.render()
    )


def test_the_summary_is_eight_lines_and_every_warning() -> None:
    folders = [
        *SEED_001,
        *(make_folder(f"data/{name}", 1, 1) for name in ("a", "b")),
    ]
    model = ModelOutlook(
        "org/m", "qwen", "", "", False, None, Download(10**9, Path("hub"), 9 * 10**9)
    )
    outlook = Outlook(
        model,
        steps=3400,
        disk=DiskOutlook(3 * 10**9, 0, 9 * 10**9, kept_bytes=10**9),
        time=TimeOutlook(3400, 1.5, 5100.0, "an RTX 4090", False, {"samples": 600.0}),
        start=StartOutlook(Path("output/my_char"), "new"),
        will_not_start=("the disk is full",),
    )
    plan = make_plan(
        folders,
        first_caption="'a cat' (0.png)",
        fits="memory: fits",
        notes=("noise levels: weighted", "warning: lr: high"),
        outlook=outlook,
    )
    assert plan.summary().splitlines() == [
        "my_char (sd_trainer): org/m",
        "  images: 70 x 40 in data/40_char, 30 x 20 in data/20_style, 1 x 1 in data/a, 1 more folder"
        "; control images: 72 with 0, 30 with 1",
        "  captions: 98 of 102, the first: 'a cat' (0.png)",
        "  steps: 3,400 (4 epochs of 3,402 samples)",
        "  memory: fits",
        "  time: about 85 min on an RTX 4090 (calculated)",
        "  disk: 1 GB to download, up to 4 GB of files (9 GB free)",
        "  folder: output/my_char: a new run",
        "  warning: lr: high",
        "  warning: this will not start: the disk is full",
    ]
    full = replace(outlook, disk=DiskOutlook(3 * 10**9, 0, 10**9))
    lines = replace(plan, outlook=full).summary().splitlines()
    assert "  disk: 1 GB to download (9 GB free)" in lines
    assert any(line.startswith("  warning: disk: up to 3 GB") for line in lines)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (850, "850 steps = 1 epoch"),
        (71, "71 steps = 0.08 epochs"),
        (1, "1 step = 0.001 epochs"),
    ],
)
def test_parts_of_an_epoch_have_two_decimals(steps: int, words: str) -> None:
    assert make_plan(SEED_001, steps=steps).render().endswith(f"; {words}")


def test_epochs_decide_over_steps_and_round_up() -> None:
    assert optimizer_steps(100, 0, 10, 4) == 100
    assert optimizer_steps(0, 3, 10, 4) == 8
    assert optimizer_steps(100, 1, 10, 4) == 3
    assert optimizer_steps(100, 4, 850 * 4, 4) == 3400
    assert "; 4 epochs = 3,400 steps" in make_plan(SEED_001, epochs=4).render()


@pytest.mark.parametrize(
    ("steps", "epochs"), [(850, 1), (425, 0.5), (1, 0.0012), (284, 0.3341)]
)
def test_epochs_are_rounded_to_four_places_and_whole_ones_are_integers(
    steps: int, epochs: float
) -> None:
    plan = make_plan(SEED_001, steps=steps)
    assert plan.epochs == epochs and isinstance(plan.epochs, type(epochs))


def test_json_has_exactly_the_documented_shape() -> None:
    folder = make_folder("data/20_style", 3, 20, (1600, 1200), references=2)
    masked = tuple(sample._replace(mask=Mask("m.png")) for sample in folder.samples[:2])
    files = [
        ConvertedImage(f"{name}.png", colours)
        for name, colours in zip("abca", ("P3", "PQ", "P3", "P3"), strict=True)
    ]
    looks = (MaskLook(0.25, 255, False), MaskLook(0.75, 255, False))
    folder = replace(
        folder,
        samples=(*masked, folder.samples[2]),
        converted=tuple(files),
        mask_looks=looks,
    )
    plan = make_plan(
        [folder], (768, 512, 512), 4, notes=("warning: it is late", "disk: about 1 GB")
    )
    assert plan.to_json() == {
        "type": "sd_trainer",
        "name": "my_char",
        "datasets": [
            {
                "folder": "data/20_style",
                "images": 3,
                "repeats": 20,
                "missing_captions": 1,
                "has_default_caption": False,
                "captions": {"1": 3},
                "references": {"2": 3},
                "layers": {},
                "masks": 2,
                "mask_share": 0.5,
                "converted": {"P3": 2, "PQ": 1},
                "buckets": [
                    {"width": 576, "height": 448, "images": 3},
                    {"width": 864, "height": 672, "images": 3},
                ],
            }
        ],
        "samples_per_epoch": 120,
        "micro_batches_per_epoch": 30,
        "optimizer_steps": 3400,
        "epochs": 453.3333,
        "notes": ["disk: about 1 GB"],
        "warnings": ["it is late"],
    }


def test_render_shows_each_folder_and_the_further_lines() -> None:
    text = make_plan(SEED_001, (1024, 512), notes=("disk: about 1 GB",)).render()
    for part in (
        "data/40_char: 70 x 40 x 2 sizes = 5,600 samples",
        "control images: none",
        "control images: 30 with 1",
        "buckets: 512x512 (70), 1024x1024 (70)",
        "without caption: 1 of 70",
        "disk: about 1 GB",
    ):
        assert part in text


def test_images_without_a_caption_train_with_the_default_one() -> None:
    folders = [replace(folder, has_default=True) for folder in SEED_001]
    text = make_plan(folders, (1024, 512)).render()
    assert "with 'default_caption': 1 of 70" in text and "without caption" not in text


def test_optimizer_steps_per_epoch_need_not_be_whole() -> None:
    assert (
        "3,400 batches, 3 for each step: 1,133.33 steps; "
        in make_plan(SEED_001, accumulation=3).render()
    )


def test_mirrored_copies_are_counted_and_said(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        make_image(tmp_path / "2_x" / f"{name}.png", 64, 64)
        make_image(tmp_path / "reg" / f"{name}.png", 64, 64)
    Image.new("RGBA", (64, 64)).save(tmp_path / "2_x" / "c.png")
    sections = [
        make_dataset(tmp_path / "2_x", flip_x=True, alpha_mask=True),
        make_dataset(tmp_path / "reg", is_reg=True, flip_x=True),
    ]
    plan = make_plan(scan_datasets(sections, None).folders, (64, 32))
    assert [
        (folder.images, folder.sizes, folder.flips, folder.samples)
        for folder in plan.datasets
    ] == [
        (3, 2, 2, 24),
        (3, 2, 2, 12),
    ]
    assert (plan.samples_per_epoch, plan.micro_batches_per_epoch) == (36, 36)
    text = plan.render()
    assert (
        "3 x 2 x 2 sizes x 2 flips + 3 x 1 x 2 sizes x 2 flips = 36 samples per epoch in 36 batches, "
        in text
    )
    assert (
        text.count("regularisation images") == 1
        and "masks: 1 of 3" in text
        and text.count("masks") == 1
    )


def test_images_are_counted_by_their_captions(tmp_path: Path) -> None:
    for name, text in (
        ("a", "one\ntwo\n"),
        ("b", "one"),
        ("c", "one\n\ntwo"),
        ("d", ""),
    ):
        make_image(tmp_path / f"{name}.png", 64, 64)
        (tmp_path / f"{name}.txt").write_text(text)
    told = [
        make_plan(
            scan_datasets([make_dataset(tmp_path, captions=captions)], None).folders,
            (64,),
        ).render()
        for captions in ("lines", "one")
    ]
    assert "    captions: 2 with 1, 2 with 2; one is drawn at each use\n" in told[0]
    assert "    without caption: 1 of 4\n" in told[0] and "is drawn" not in told[1]


def test_warnings_come_together_at_the_end_and_the_worst_crops_are_named(
    tmp_path: Path,
) -> None:
    for name, height in (("a", 64), ("b", 90), ("c", 70)):
        make_image(tmp_path / f"{name}.png", 64, height)
    folders = scan_datasets([make_dataset(tmp_path)], None).folders
    lines = (
        make_plan(folders, (64,), notes=("warning: first", "disk: 1 GB"))
        .render()
        .splitlines()
    )
    assert (
        lines[-4:-1] == ["  disk: 1 GB", "  2 warnings:", lines[-2]]
        and lines[-1] == "  warning: first"
    )
    # Each is cut to 64 x 64: (26 of 90 + 0 + 6 of 70) / 3.
    assert (
        "cropped to the buckets: 12.5% of an image on average, most of b.png 29%, c.png 9%. run.py lint"
        in lines[-2]
    )
    (folder,) = folders
    small = replace(folder, samples=folder.samples[2:])
    assert (
        "    cropped to the buckets: 8.6% of an image on average, most of c.png 9%\n"
        in make_plan([small], (64,)).render()
    )


@pytest.mark.parametrize(
    ("counts", "batch_size", "note"),
    [
        (
            {64: 5, 96: 3, 128: 3, 160: 1, 192: 1},
            100,
            "batches have 1 to 5 images, 2.6 on average",
        ),
        ({64: 40, 96: 1}, 100, "batches have 1 to 40 images, 20.5 on average"),
        ({64: 5, 96: 3}, 4, ""),
        ({64: 100}, 100, ""),
        ({64: 1}, 2, ""),
        ({}, 100, ""),
    ],
)
def test_a_batch_size_that_buckets_do_not_fill_is_told(
    counts: dict[int, int], batch_size: int, note: str
) -> None:
    items = [
        BucketedSample(
            Sample(f"{side}-{number}.png", "", 1, Size(side, side), "x"),
            cover(Size(side, side), Size(side, side)),
        )
        for side, count in counts.items()
        for number in range(count)
    ]
    told = batch_note(items, batch_size)
    assert note in told and bool(told) == bool(note)
