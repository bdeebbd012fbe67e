"""Images of any bands and dtype as RGB, for the eye."""

import numpy as np
import torch
from numpy.typing import NDArray


def as_rgb(image: torch.Tensor) -> NDArray[np.uint8]:
    """Convert an image (bands, H, W) to RGB (H, W, 3) for display.

    8-bit RGB is returned unchanged. Otherwise the first three bands, or the first one as grey, are stretched
    from their 2nd to their 98th percentile.
    """
    pixels = image.permute(1, 2, 0).numpy()
    if pixels.shape[2] == 3 and pixels.dtype == np.uint8:
        return pixels
    pixels = pixels[:, :, [0, 1, 2] if pixels.shape[2] >= 3 else [0, 0, 0]].astype(np.float32)
    low, high = np.percentile(pixels, (2, 98), axis=(0, 1))
    return (255 * ((pixels - low) / np.maximum(high - low, 1e-6)).clip(0, 1)).round().astype(np.uint8)
