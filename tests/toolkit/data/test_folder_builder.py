"""Each field of a sample comes from its own key of the config, and from its own file."""

from pathlib import Path

from toolkit.data.folder import scan_datasets
from toolkit.data.types import CaptionRules, Flip, Mask, Sample, Size


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
        control_images=(str(tmp_path / "first" / "a.png"), str(tmp_path / "second" / "a.png")),
        rules=CaptionRules(dropout_rate=0.125, shuffle_tokens=True, keep_tokens=2, trigger="sks"),
        mask=Mask(str(tmp_path / "masks" / "a.png"), min_value=0.25, inverted=True),
        loss_weight=3.0,
        background="black",
        flip=Flip(),
        dataset=1,
    )
    assert plain.name == "a.png"
    assert mirrored == plain._replace(flip=Flip(y=True))


def test_each_image_has_what_is_its_own_at_each_of_its_flips(tmp_path: Path, image, dataset) -> None:
    data = tmp_path / "data"
    for index, stem in enumerate("abcd"):
        image(data / f"{stem}.png", 64 + index, 48)
    for folder, stem in (("controls", "b"), ("masks", "c")):
        image(tmp_path / folder / f"{stem}.png", 64, 48)
    for stem in "bd":
        (data / f"{stem}.txt").write_text(f"caption {stem}")
    section = dataset(
        data,
        control_path=(str(tmp_path / "controls"),),
        control_optional=True,
        mask_path=str(tmp_path / "masks"),
        mask_optional=True,
        default_caption="a default",
        flip_x=True,
    )
    (folder,) = scan_datasets([section], None).folders
    assert folder.missing_captions == 2
    seen = [
        (s.name, s.caption, s.size.width, len(s.control_images), s.mask and Path(s.mask.file).name, s.flip.x)
        for s in folder.samples
    ]
    assert seen == [
        (*own, flip)
        for own in (
            ("a.png", "a default", 64, 0, None),
            ("b.png", "caption b", 65, 1, None),
            ("c.png", "a default", 66, 0, "c.png"),
            ("d.png", "caption d", 67, 0, None),
        )
        for flip in (False, True)
    ]
