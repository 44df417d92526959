"""From the mask of an image to the weight of each latent pixel in the loss.

Shape suffixes: H/W height and width of the latent.
"""

from __future__ import annotations

import numpy
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from toolkit.data.images import flip_image, load_alpha, open_image, resize_cover_crop
from toolkit.interfaces import Flip, Mask, ResizeCrop


def mask_weights(mask: Mask, crop: ResizeCrop, flip: Flip, latent_scale: int) -> Tensor:
    """Weights [1, H, W] in [0, 1], float32: w = 1 - (1 - min_value) (1 - m), so white is exactly 1.

    latent_scale: pixels along one side of a latent pixel.

    m is the mean of the mask over the pixels of a latent pixel, after the resize, crop and flip of its image. A mask
    image of another size is stretched; colours count by their brightness, transparency as black.
    Raises ImageError when the file cannot be used.
    """
    picture = load_alpha(mask.file) if mask.alpha else open_image(mask.file, background="black").convert("L")
    pixels = flip_image(resize_cover_crop(picture, crop), flip)
    share_1HW = avg_pool2d(torch.from_numpy(numpy.array(pixels, dtype=numpy.float32) / 255.0)[None], latent_scale)
    if mask.inverted:
        share_1HW = 1.0 - share_1HW
    return 1.0 - (1.0 - mask.min_value) * (1.0 - share_1HW)
