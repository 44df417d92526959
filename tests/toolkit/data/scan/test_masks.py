"""What is said of masks: the share of the area that counts, and masks that are not
meant as they are read."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from PIL import Image

from tests.toolkit.data.conftest import make_dataset, make_image
from toolkit.contracts.data import Mask, ResizeCrop, Size
from toolkit.data.batches.latent_cache import mask_weights
from toolkit.data.scan import masks
from toolkit.data.scan.folder import scan_datasets
from toolkit.data.scan.masks import MaskLook, look_at_mask, look_at_masks, mask_fault

WHOLE = ResizeCrop(Size(64, 64), 0, 0, Size(64, 64))


def two_values(
    path: Path,
    outside: object,
    inside: object,
    mode: str = "L",
    palette: tuple[int, ...] = (),
) -> Path:
    """A mask of 64 x 64 whose upper left quarter has the value `inside`."""
    image = Image.new(mode, (64, 64), outside)
    if palette:
        image.putpalette([*palette, *[0] * (768 - len(palette))])
    image.paste(inside, (0, 0, 32, 32))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("white", [255, 200, 128])
def test_the_share_is_the_mean_weight_that_training_uses(
    tmp_path: Path, white: int, inverted: bool
) -> None:
    mask = Mask(str(two_values(tmp_path / "a.png", 0, white)), inverted=inverted)
    look = look_at_mask(mask)
    weights = mask_weights(mask, WHOLE, False, 8)
    assert look.share == pytest.approx(float(weights.mean()), abs=1e-6)
    assert (look.brightest, look.is_coloured) == (white, False)
    assert mask_fault(mask, look) is None


@pytest.mark.parametrize(
    ("made", "kind", "detail"),
    [
        ({"outside": 0, "inside": 1}, "dark throughout", "brightest value 1 of 255"),
        (
            {"outside": 0, "inside": 127},
            "dark throughout",
            "brightest value 127 of 255",
        ),
        ({"outside": 0, "inside": 0}, "black throughout", "brightest value 0"),
        # The classes of PASCAL VOC: dark red is the first.
        (
            {"outside": 0, "inside": 1, "mode": "P", "palette": (0, 0, 0, 128, 0, 0)},
            "dark throughout",
            "value 38 of",
        ),
        (
            {"outside": 0, "inside": 1, "mode": "P", "palette": (0, 0, 0, 0, 255, 0)},
            "in colours",
            "14.7% of the area",
        ),
        (
            {"outside": (0, 0, 0), "inside": (255, 255, 0), "mode": "RGB"},
            "in colours",
            "22.2% of the area",
        ),
        ({"outside": 255, "inside": 255}, "without effect", "100.0% of the area"),
        ({"outside": 3, "inside": 255, "mode": "L"}, "", ""),
        ({"outside": 0, "inside": 1, "mode": "1"}, "", ""),
        (
            {
                "outside": 0,
                "inside": 1,
                "mode": "P",
                "palette": (0, 0, 0, 250, 255, 245),
            },
            "",
            "",
        ),
        (
            {"outside": (0, 0, 0, 0), "inside": (255, 255, 255, 255), "mode": "RGBA"},
            "",
            "",
        ),
    ],
)
def test_masks_as_other_programs_save_them(
    tmp_path: Path, made: dict, kind: str, detail: str
) -> None:
    mask = Mask(str(two_values(tmp_path / "a.png", **made)))
    fault = mask_fault(mask, look_at_mask(mask))
    assert (fault is None) == (kind == "")
    if fault:
        assert fault.kind.startswith(kind) and detail in fault.detail and fault.remedy


def test_a_mask_of_16_bits_with_the_values_0_and_1_is_black(tmp_path: Path) -> None:
    values = numpy.zeros((64, 64), numpy.uint16)
    values[:32, :32] = 1
    Image.fromarray(values).save(tmp_path / "a.png")
    mask = Mask(str(tmp_path / "a.png"))
    fault = mask_fault(mask, look_at_mask(mask))
    assert fault and fault.kind == "black throughout"
    assert "of 16 bits 65535" in fault.remedy


def test_opacity_as_a_mask(tmp_path: Path) -> None:
    two_values(tmp_path / "a.png", (9, 9, 9, 255), (9, 9, 9, 0), "RGBA")
    scan = scan_datasets([make_dataset(tmp_path, alpha_mask=True)], None)
    assert [look.share for look in scan.folders[0].mask_looks] == [0.75]
    assert not scan.mask_faults


@pytest.mark.parametrize(
    ("levels", "is_told"),
    [
        ((0, 4, 12, 120, 150), True),  # the numbers of classes, as ADE20K has them
        (range(0, 165, 11), True),
        ((0, 128, 255), False),  # a trimap
        ((0, 200), False),
        (range(0, 256, 17), False),  # a soft edge of 4 bits
        (range(0, 200), False),
    ],
)
def test_a_map_of_classes_in_greys_is_told(
    tmp_path: Path, levels, is_told: bool
) -> None:
    row = numpy.array([level for level in levels for _ in range(4)], numpy.uint8)
    Image.fromarray(row[None].repeat(8, 0)).save(tmp_path / "a.png")
    mask = Mask(str(tmp_path / "a.png"))
    fault = mask_fault(mask, look_at_mask(mask))
    assert (fault is not None) == is_told
    if fault:
        assert (
            fault.kind
            == "in a few greys without white, each of which counts by its brightness"
        )
        assert fault.remedy.startswith(
            "If they are classes, save white for those that are to be learned"
        )


@pytest.mark.parametrize(
    ("share", "kind"),
    [
        (0.019, "such that"),
        (0.02, ""),
        (0.5, ""),
        (0.98, ""),
        (0.981, "without effect"),
    ],
)
def test_the_bounds_of_the_share(share: float, kind: str) -> None:
    fault = mask_fault(Mask("a.png"), MaskLook(share, 255, is_coloured=False))
    assert (fault.kind[: len(kind)] if fault else "") == kind


def test_the_remedy_fits_the_settings_of_the_dataset() -> None:
    small = MaskLook(0.001, 255, is_coloured=False)
    teaches = mask_fault(Mask("a.png"), small)
    counts = mask_fault(Mask("a.png", min_value=0.1), small)
    assert teaches and teaches.kind.endswith("almost all of the image teaches nothing")
    assert counts and counts.kind.endswith("almost all of the image counts 0.1")
    inverted = mask_fault(Mask("a.png", inverted=True), small)
    assert "'invert_mask: true' exchanges" in teaches.remedy
    assert inverted and "as 'invert_mask: true' says" in inverted.remedy
    clear = mask_fault(Mask("a.png", alpha=True), MaskLook(0.001, 9, is_coloured=False))
    assert (
        clear and clear.kind.startswith("hardly opaque") and "opacity" in clear.remedy
    )
    assert (
        mask_fault(Mask("a.png", min_value=1.0), MaskLook(0.0, 0, is_coloured=False))
        is None
    )


def test_the_scan_names_them_together_and_keeps_each(tmp_path: Path) -> None:
    for name, white in (("a", 1), ("b", 1), ("c", 255)):
        make_image(tmp_path / "data" / f"{name}.png", 64, 64)
        two_values(tmp_path / "masks" / f"{name}.png", 0, white)
    scan = scan_datasets(
        [make_dataset(tmp_path / "data", mask_path=str(tmp_path / "masks"))], None
    )
    (note,) = [note for note in scan.notes if "mask" in note]
    assert note.startswith(
        f"warning: {tmp_path / 'data'}: 2 of 3 masks are dark throughout"
    )
    assert (
        "a.png (brightest value 1 of 255), b.png (brightest value 1 of 255). Save white"
        in note
    )
    assert [Path(file).name for file, _ in scan.mask_faults] == ["a.png", "b.png"]
    shares = [look.share for look in scan.folders[0].mask_looks]
    assert shares == pytest.approx([1 / 4 / 255, 1 / 4 / 255, 1 / 4])


def test_of_many_masks_some_at_equal_distances_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "MOST_MEASURED", 4)
    made = [
        Mask(str(two_values(tmp_path / f"{index:02}.png", 0, 255)))
        for index in range(10)
    ]
    assert [Path(mask.file).stem for mask, _ in look_at_masks(made)] == [
        "00",
        "02",
        "05",
        "07",
    ]
    Path(made[2].file).write_bytes(b"")
    assert [Path(mask.file).stem for mask, _ in look_at_masks(made)] == [
        "00",
        "05",
        "07",
    ]
