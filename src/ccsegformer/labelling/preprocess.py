"""What a network expects of an image: how many bands, and how their values are normalised."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ccsegformer.data.pixels import BandStatistics, normalize
from ccsegformer.errors import DataError


class Preprocessing(NamedTuple):
    """The input that a network was trained on.

    Attributes:
        channels: number of bands; None for any number.
        statistics: mean and standard deviation of each band, in stored units; None for 8-bit RGB normalised
            by ImageNet's.
        only_8_bit: whether other values than uint8 are refused.
    """

    channels: int | None = 3
    statistics: BandStatistics | None = None
    only_8_bit: bool = True

    def check(self, bands: int, dtype: str, name: str | Path) -> None:
        """Check that an image of `bands` bands and of this dtype suits the network.

        Raises:
            DataError: it does not; the message calls the image `name`.
        """
        if self.channels is not None and bands != self.channels:
            raise DataError(
                f"{name}: {bands} {'band' if bands == 1 else 'bands'} for a model of {self.channels}"
            )
        if self.only_8_bit and dtype != "uint8":
            raise DataError(f"{name}: {dtype} values for a model of 8-bit colours")
        if dtype != "float32" and self._looks_rescaled():
            raise DataError(f"{name}: mean and std up to 1 for {dtype} values: give them in stored units")
        known = 3 if self.statistics is None else len(self.statistics.means)
        if bands != known:
            raise DataError(f"{name}: {bands} bands, but the model's mean and std are known for {known}")

    def _looks_rescaled(self) -> bool:
        """Check whether the statistics seem to be those of values divided by 255 or 65535."""
        if self.statistics is None or set(self.statistics.means) == {0.0}:
            return False
        return max(*self.statistics.means, *self.statistics.stds) <= 1

    def apply(self, image: Tensor) -> Tensor:
        """Normalise an image (bands, H, W) to float32."""
        return normalize(image, self.statistics)


def preprocessing_of(config: Any) -> Preprocessing:
    """Read the preprocessing from a model's configuration; without one, any 8-bit RGB image is taken."""
    channels = getattr(config, "num_channels", None)
    means = getattr(config, "band_means", None)
    if means is None:
        return Preprocessing(channels)
    return Preprocessing(channels, BandStatistics(tuple(means), tuple(config.band_stds)), only_8_bit=False)


def given_preprocessing(means: list[float], stds: list[float]) -> Preprocessing:
    """Preprocessing from mean and standard deviation of each band, in stored units.

    Raises:
        DataError: the lists differ in length or are empty, or a standard deviation is not positive.
    """
    if not means or len(means) != len(stds) or min(stds) <= 0:
        raise DataError(f"mean {means} and std {stds}: give one number for each band, std above 0")
    return Preprocessing(len(means), BandStatistics(tuple(means), tuple(stds)), only_8_bit=False)
