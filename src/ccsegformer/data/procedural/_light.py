"""Light a painted scene: sun, shadows and slopes from the heights, then weather and camera."""

import numpy as np

from ccsegformer.data.procedural._canvas import Canvas, noise


def expose(canvas: Canvas, sun: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Light the scene and return its picture, uint8 (size, size, 3)."""
    azimuth, elevation = sun
    size = len(canvas.height)
    east, south = float(np.cos(azimuth)), float(np.sin(azimuth))
    rise = float(np.tan(elevation))

    slope_y, slope_x = np.gradient(canvas.height * np.float32(canvas.zoom))
    lean = np.clip(slope_x * east + slope_y * south, -0.8, 0.8)
    direct = np.clip(1 - lean / rise, 0.3, 1.45)
    direct *= 1 - 0.9 * _shadow(canvas.height, east, south, rise / canvas.zoom)
    clouds = np.clip(noise(rng, size, 90) * 2 - 0.6, 0, 1) * rng.choice([0.0, 0.45])
    warmth, haze = rng.uniform(-0.05, 0.05), rng.uniform(0, 0.14)
    gain = rng.uniform(0.78, 1.14)
    light = 0.42 + 0.62 * direct * (1 - clouds)
    tint = np.array((1 + warmth, 1, 1 - warmth), np.float32) * gain
    picture = canvas.albedo * light[..., None].astype(np.float32) * tint
    picture += haze * (np.array((188, 198, 210), np.float32) - picture)
    picture = _blur(picture, rng.uniform(0, 0.22))
    picture += rng.uniform(1.5, 6) * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _shadow(height: np.ndarray, east: float, south: float, drop: float) -> np.ndarray:
    """Return the shadow, 0 to 1, of each pixel; sun rays from `(east, south)` fall by `drop` per pixel."""
    size = len(height)
    shadow = np.zeros_like(height)
    for step in range(1, min(size, int(height.max() / drop) + 1)):
        dx, dy = round(step * east), round(step * south)
        here = slice(max(-dy, 0), size - max(dy, 0)), slice(max(-dx, 0), size - max(dx, 0))
        there = slice(max(dy, 0), size + min(dy, 0)), slice(max(dx, 0), size + min(dx, 0))
        above = height[there] - height[here] - np.float32(step * drop)
        np.maximum(shadow[here], np.clip(above, 0, 1), out=shadow[here])
    return shadow


def _blur(picture: np.ndarray, share: float) -> np.ndarray:
    """Spread `share` of each pixel's light to its neighbours, as a lens does."""
    wide = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    wide = (1 - share) * wide[:, 1:-1] + (share / 2) * (wide[:, :-2] + wide[:, 2:])
    return (1 - share) * wide[1:-1] + (share / 2) * (wide[:-2] + wide[2:])
