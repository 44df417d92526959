"""Each field of a sample comes from its own key of the config, and from its own file."""

from pathlib import Path

from toolkit.contracts import CaptionRules, Flip, Mask, Sample, Size
from toolkit.data.folder import scan_datasets


def test_every_field_of_a_sample(tmp_path: Path, image, dataset) -> None:
    data = tmp_path / "data" / "7_x"
    image(data / "a.png", 64, 48)
    (data / "a.txt").write_text("[trigger] on a hill")
    for folder in ("first", "second", "masks"):
        image(tmp_path / folder / "a.png", 64, 48)
    section = dataset(
        tmp_path / "data",
        control_path=(str(tmp_path / "first"), str(tmp_path / "second")),
        mask_path=str(tmp_path / "masks"),
        mask_min_value=0.25,
        invert_mask=True,
        caption_dropout_rate=0.125,
        shuffle_tokens=True,
        keep_tokens=2,
        loss_multiplier=3.0,
        background="black",
        flip_y=True,
    )
    plain, mirrored = scan_datasets([dataset(data), section], "sks").folders[1].samples
    assert plain == Sample(
        image=str(data / "a.png"),
        caption="sks on a hill",
        repeats=7,
        size=Size(64, 48),
        folder=f"{tmp_path}/data/7_x",
        controls=(str(tmp_path / "first" / "a.png"), str(tmp_path / "second" / "a.png")),
        rules=CaptionRules(dropout_rate=0.125, shuffle_tokens=True, keep_tokens=2, trigger="sks"),
        mask=Mask(str(tmp_path / "masks" / "a.png"), min_value=0.25, inverted=True),
        loss_weight=3.0,
        background="black",
        flip=Flip(),
        dataset=1,
    )
    assert plain.name == "a.png"
    assert mirrored == plain._replace(flip=Flip(y=True))
