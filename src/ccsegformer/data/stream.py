"""A training run as one deterministic sequence of samples."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset

from ccsegformer.data.dataset import DrawnSamples, LabelledImages, Sample
from ccsegformer.data.pixels import MEAN_COLOR, MINIMUM_SIDE, BandStatistics, normalize, pad_to
from ccsegformer.data.transforms import Transform, apply_transforms
from ccsegformer.errors import DataError


class TrainingSample(TypedDict):
    """Input of a training step: one image or a batch."""

    pixel_values: torch.Tensor  # float32 ([B,] bands, H, W), normalised
    labels: torch.Tensor  # int64 ([B,] H, W)


class TrainingStream(Dataset[TrainingSample]):
    """All `length` samples of a training run. Sample `n` depends only on (seed, n).

    Sample `n` belongs to epoch `n // len(dataset)`. Each epoch is a permutation seeded by (seed, epoch). The
    augmentation of a sample, and its position in a scene, are seeded by (seed, n). The stream must be read in
    order, without shuffling; then resuming, worker processes and devices do not change the training data.

    Args:
        dataset: Images, or samples drawn at random.
        transforms: Augmentations, in order.
        seed: Seed of the run, at least 0.
        length: Number of samples, at least 1.
        statistics: Statistics of the images' bands; None for 8-bit RGB.

    Raises:
        DataError: An empty data set.
        ValueError: A length below 1 or a negative seed.
    """

    def __init__(
        self,
        dataset: LabelledImages | DrawnSamples,
        transforms: Sequence[Transform],
        *,
        seed: int,
        length: int,
        statistics: BandStatistics | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise DataError("the data set has no images to train on")
        if length < 1 or seed < 0:
            raise ValueError(f"length must be positive and seed not negative, not {length} and {seed}")
        self.dataset = dataset
        self.transforms = tuple(transforms)
        self.seed = seed
        self.length = length
        self.statistics = statistics
        self._epoch = -1
        self._order: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> TrainingSample:
        """Read, augment and normalise sample `index`."""
        return self.augment(index, self.read(index))

    def read(self, index: int) -> Sample:
        """Read sample `index` as the data set has it."""
        if not 0 <= index < self.length:
            raise IndexError(f"sample {index} of a stream of {self.length}")
        if isinstance(self.dataset, DrawnSamples):
            return self.dataset.draw(self.source(index), _generator(self.seed, 2, index))
        return self.dataset[self.source(index)]

    def augment(self, index: int, sample: Sample) -> TrainingSample:
        """Augment and normalise what `read` returned for `index`."""
        image, mask = apply_transforms(
            self.transforms,
            sample["image"],
            sample["mask"],
            _generator(self.seed, 1, index),
            ignore_index=self.dataset.classes.ignore_index,
            color=self.statistics.means if self.statistics else MEAN_COLOR,
        )
        pixels = normalize(image, self.statistics)
        return {"pixel_values": pixels, "labels": mask.as_subclass(torch.Tensor).long()}

    def source(self, index: int) -> int:
        """Return the index in the data set of sample `index` of the stream."""
        epoch, position = divmod(index, len(self.dataset))
        if epoch != self._epoch:
            generator = _generator(self.seed, 0, epoch)
            self._order = torch.randperm(len(self.dataset), generator=generator).tolist()
            self._epoch = epoch
        return self._order[position]


def collate(samples: Sequence[TrainingSample], ignore_index: int) -> TrainingSample:
    """Stack samples of any sizes into a batch, padded at the bottom and on the right to the largest.

    Pixels are padded with 0 (the mean colour) and labels with `ignore_index`. Each side of a batch is
    at least 32 pixels, the minimum for the network.
    """
    height, width = (
        max(MINIMUM_SIDE, *(sample["labels"].shape[axis] for sample in samples)) for axis in (0, 1)
    )
    return {
        "pixel_values": torch.stack([pad_to(sample["pixel_values"], height, width, 0) for sample in samples]),
        "labels": torch.stack([pad_to(sample["labels"], height, width, ignore_index) for sample in samples]),
    }


@contextmanager
def plain_data_errors() -> Iterator[None]:
    """Restore the one-line message of a DataError raised in a DataLoader worker.

    PyTorch raises it again in the main process with the worker's whole traceback as its message.
    """
    try:
        yield
    except DataError as error:
        raise DataError(str(error).rstrip().rsplit(f"{DataError.__name__}: ", 1)[-1]) from None


def _generator(*key: int) -> torch.Generator:
    """Return a generator seeded by several numbers; similar keys give independent streams."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64).item()
    return torch.Generator().manual_seed(seed)
