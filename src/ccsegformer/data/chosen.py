"""Choose among the images of a data set: those that can be read, and more of those with rare classes."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from ccsegformer.data.dataset import LabelledImages, Sample
from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError


class KeptImages(Dataset[Sample]):
    """Some images of a data set.

    Args:
        images: Images to choose from.
        kept: Their indices, in order.
    """

    def __init__(self, images: LabelledImages, kept: Iterable[int]) -> None:
        self.images, self.kept = images, tuple(kept)
        self.classes: Classes = images.classes
        self.names: tuple[str, ...] = tuple(images.names[index] for index in self.kept)

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Sample:
        """Read image `index` of those kept."""
        return self.images[self.kept[index]]


class BalancedImages:
    """Images, a share of which is replaced by images of a class that is drawn uniformly.

    All classes that occur are equally likely, and so are all images that show the class. An epoch has as many
    samples as there are images.

    Args:
        images: Images to read from.
        rare_classes: Share of the samples that are chosen by class.
        labels: Pixels of each class that occurs, by image.

    Raises:
        DataError: No pixel is labelled.
    """

    def __init__(
        self, images: LabelledImages, rare_classes: float, labels: Sequence[Mapping[int, int]]
    ) -> None:
        self.images, self.rare_classes = images, rare_classes
        self.classes: Classes = images.classes
        occurring = sorted({label for counts in labels for label in counts})
        if not occurring:
            raise DataError("images.rare_classes: no pixel is labelled, so no class can be drawn")
        self._shown_by = [
            np.array([index for index, counts in enumerate(labels) if label in counts]) for label in occurring
        ]

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Read image `index`, or one that shows a random class."""
        coin, *draws = torch.rand(3, dtype=torch.float64, generator=generator).tolist()
        if coin < self.rare_classes:
            shown_by = self._shown_by[int(draws[0] * len(self._shown_by))]
            index = int(shown_by[int(draws[1] * len(shown_by))])
        return self.images[index]
