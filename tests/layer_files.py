"""Pictures with their layers, as files."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from toolkit.contracts.data import Size

SIZE = Size(96, 64)


def write_layers(
    folder: Path, count: int, size: Size = SIZE, stem: str = "a"
) -> tuple[Path, ...]:
    """A picture, and behind it its layers: a background, and discs with opacity."""
    folder.mkdir(parents=True, exist_ok=True)
    whole, layers = Image.new("RGBA", size, (40, 90, 160, 255)), []
    for index in range(count):
        layer = whole.copy() if index == 0 else Image.new("RGBA", size)
        if index:
            box = (12 * index, 8 * index, 12 * index + 30, 8 * index + 24)
            ImageDraw.Draw(layer).ellipse(
                box, (200, 60 * index % 256, 30, 120 + 40 * index)
            )
        layers.append(layer)
        whole = Image.alpha_composite(whole, layer)
    paths = (
        folder / f"{stem}.png",
        *(folder / f"{stem}_layer{index}.png" for index in range(count)),
    )
    for path, image in zip(paths, (whole, *layers), strict=True):
        image.save(path)
    return paths
