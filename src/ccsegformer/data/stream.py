"""A whole training run as one deterministic sequence of samples."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset

from ccsegformer.data.dataset import DrawnSamples, LabelledImages
from ccsegformer.data.pixels import MEAN_COLOR, MINIMUM_SIDE, BandStatistics, normalize, pad_to
from ccsegformer.data.transforms import Transform, apply_transforms
from ccsegformer.errors import DataError


class TrainingSample(TypedDict):
    """What the network is trained on, one image or a batch of them."""

    pixel_values: torch.Tensor  # float32 ([B,] bands, H, W), normalised
    labels: torch.Tensor  # int64 ([B,] H, W)


class TrainingStream(Dataset[TrainingSample]):
    """Sample `n` of a training run of `length` samples; a function of (seed, n) and of nothing else.

    Sample `n` belongs to epoch `n // len(dataset)`. The order of an epoch is a permutation seeded by
    (seed, epoch), the augmentation of a sample is seeded by (seed, n), and so is its place in a scene. Read
    it in order, without shuffling: then neither resuming nor the number of worker processes or devices
    changes what is trained on. `statistics` are those of the images' bands; None stands for 8-bit RGB.

    Raises:
        DataError: an empty data set.
        ValueError: a length below 1 or a negative seed.
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
            raise DataError("there are no images to train on")
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
        if not 0 <= index < self.length:
            raise IndexError(f"sample {index} of a stream of {self.length}")
        if isinstance(self.dataset, DrawnSamples):
            sample = self.dataset.draw(self.source(index), _generator(self.seed, 2, index))
        else:
            sample = self.dataset[self.source(index)]
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
        """Which sample of the data set sample `index` of the stream is made from."""
        epoch, position = divmod(index, len(self.dataset))
        if epoch != self._epoch:
            generator = _generator(self.seed, 0, epoch)
            self._order = torch.randperm(len(self.dataset), generator=generator).tolist()
            self._epoch = epoch
        return self._order[position]


def collate(samples: Sequence[TrainingSample], ignore_index: int) -> TrainingSample:
    """Stack samples of any sizes into a batch, padded below and to the right to the largest of them.

    Padding is 0 (the mean colour) in the pixels and `ignore_index` in the labels. A batch is at least 32
    pixels high and wide, the least that every stage of the network can take.
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
    """Give a DataError raised in a DataLoader's worker process its one line back.

    PyTorch raises it again in the main process with the worker's traceback as the message.
    """
    try:
        yield
    except DataError as error:
        raise DataError(str(error).rstrip().rsplit(f"{DataError.__name__}: ", 1)[-1]) from None


def _generator(*key: int) -> torch.Generator:
    """A generator seeded by several numbers; neighbouring keys give unrelated values."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64).item()
    return torch.Generator().manual_seed(seed)
