"""Built-in data: aerial scenes drawn from a seed, which test whether a model sees far.

Each scene is farmland with hamlets, woods, roads from edge to edge and one channel. Sun, weather, ground
resolution and camera noise vary. Most classes can be recognised locally. Three questions cannot be answered
from the neighbourhood of a pixel:

- **Wheat or maize?** A scene has one of them. Both look the same, in every hue and row direction. Only the
  farmyard tells them apart: round red bins mean wheat, long blue barns mean maize. It stands near the edge of
  the scene, in any direction and at any distance from a field.
- **River or canal?** Water and banks look the same. Only the head of the channel tells them apart: a river
  begins in a round lake, a canal in a square dock. From there the channel winds through the scene, in any
  direction.
- **Road or forest?** A road continues under the trees of a wood. It is labelled road there, although only
  trees are visible.

The first two are one fact per scene each, drawn separately: changing one changes only pixels near the
farmyard or the channel's head. A model that does not see that far can only guess; the control is
`attention="none"`. Landmarks keep their size in pixels, so they are farther away in larger scenes. At 128
pixels a convolutional encoder sees most scenes entirely, and these questions no longer test anything.
"""

from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ccsegformer.data.dataset import Sample
from ccsegformer.data.labels import Classes
from ccsegformer.data.procedural._layout import draw_layout
from ccsegformer.data.procedural._painting import paint_layout
from ccsegformer.errors import DataError

PROCEDURAL_CLASSES = Classes(
    names=("bare ground", "wheat", "maize", "forest", "river", "canal", "road", "building", "vehicle"),
    palette=(
        (190, 152, 108),
        (240, 204, 84),
        (148, 196, 72),
        (28, 98, 52),
        (36, 92, 178),
        (96, 196, 226),
        (112, 112, 118),
        (196, 74, 60),
        (255, 255, 255),
    ),
)
SPLITS = ("training", "validation")
MIN_SIZE = 128


class ProceduralScenes(Dataset[Sample]):
    """`count` scenes of `size` x `size` pixels, the same on every machine. Splits share no scene.

    Each process keeps the last 512 scenes in memory, at 4 bytes per pixel.

    Raises:
        DataError: An unknown split, no scenes, or scenes too small for their landmarks.
    """

    classes = PROCEDURAL_CLASSES

    def __init__(self, split: str, *, count: int, size: int = 256, seed: int = 0) -> None:
        if split not in SPLITS:
            raise DataError(f"procedural: no split {split!r}; the splits are {', '.join(SPLITS)}")
        if count < 1 or size < MIN_SIZE or seed < 0:
            raise DataError(
                f"procedural: count {count}, size {size} and seed {seed} must be at least 1, {MIN_SIZE} and 0"
            )
        self.size = size
        self.names = tuple(f"{split}_{index:05d}" for index in range(count))
        self._scene_seed = len(SPLITS) * seed + SPLITS.index(split)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Draw scene `index`."""
        name = self.names[index]
        image, mask = _cached_scene(self._scene_seed, index % len(self), self.size)
        return {
            "image": tv_tensors.Image(torch.tensor(image).permute(2, 0, 1)),
            "mask": tv_tensors.Mask(torch.tensor(mask)),
            "name": name,
        }


def scene(seed: int, index: int, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene: image uint8 (size, size, 3) and labels uint8 (size, size).

    The result depends only on the arguments. Every four consecutive scenes from a multiple of four contain
    each combination of crop and channel once.
    """
    order = np.random.default_rng((seed, index // 4)).permutation(4)
    fact = int(order[index % 4])
    return _draw_scene(seed, index, size, wheat=fact % 2 == 0, river=fact < 2)


def _draw_scene(
    seed: int, index: int, size: int, *, wheat: bool, river: bool
) -> tuple[np.ndarray, np.ndarray]:
    place, paint = np.random.SeedSequence(seed, spawn_key=(index,)).spawn(2)
    layout = draw_layout(np.random.default_rng(place), size)
    return paint_layout(layout, np.random.default_rng(paint), wheat=wheat, river=river)


_cached_scene = lru_cache(maxsize=512)(scene)
