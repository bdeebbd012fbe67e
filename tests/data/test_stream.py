import pickle
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.tv_tensors import Image, Mask

from ccsegformer.data.dataset import Sample
from ccsegformer.data.labels import Classes
from ccsegformer.data.pixels import normalize
from ccsegformer.data.stream import TrainingSample, TrainingStream, collate, plain_data_errors
from ccsegformer.data.transforms import HorizontalFlip, Invert, RandomCrop, RandomResize, Transform
from ccsegformer.errors import DataError

TRANSFORMS: list[Transform] = [HorizontalFlip(), Invert(), RandomResize(), RandomCrop(sizes=(16, 24))]
# Newer Pythons warn about forks in processes with threads, which PyTorch always has.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


class Squares:
    """Squares of one colour, `index`, in 20x30 pixels; sample `broken` cannot be read."""

    classes = Classes(("a", "b"), ignore_index=250)

    def __init__(self, count: int, broken: int = -1) -> None:
        self.names = tuple(map(str, range(count)))
        self.broken = broken

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        if index == self.broken:
            raise DataError("images/7.png: damaged image")
        image = Image(torch.full((3, 20, 30), index, dtype=torch.uint8))
        mask = Mask(torch.arange(600, dtype=torch.int32).reshape(20, 30) % 2)
        return {"image": image, "mask": mask, "name": self.names[index]}


def same(a: TrainingSample, b: TrainingSample) -> bool:
    return torch.equal(a["pixel_values"], b["pixel_values"]) and torch.equal(a["labels"], b["labels"])


def test_every_epoch_is_another_permutation() -> None:
    stream = TrainingStream(Squares(50), [], seed=1, length=150)
    epochs = [[stream.source(50 * epoch + position) for position in range(50)] for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != [TrainingStream(Squares(50), [], seed=2, length=50).source(n) for n in range(50)]


def test_a_sample_depends_on_seed_and_number_alone() -> None:
    def stream(seed: int = 5, length: int = 30) -> TrainingStream:
        return TrainingStream(Squares(12), TRANSFORMS, seed=seed, length=length)

    forwards = list(map(stream().__getitem__, range(30)))
    shuffled = stream(length=40)
    for n in reversed(range(30)):
        assert same(forwards[n], shuffled[n])
    torch.manual_seed(99)
    assert same(forwards[17], pickle.loads(pickle.dumps(shuffled))[17])
    assert not all(same(a, b) for a, b in zip(forwards, map(stream(6).__getitem__, range(30)), strict=True))


def test_augmentation_differs_from_epoch_to_epoch() -> None:
    stream = TrainingStream(Squares(1), [RandomCrop(probability=1, sizes=(4,))], seed=0, length=40)
    corners = [tuple(stream[n]["labels"][0].tolist()) for n in range(40)]
    assert len(set(corners)) == 2  # the columns alternate, so that crops begin with either label
    plain = TrainingStream(Squares(1), [], seed=0, length=1)[0]
    assert torch.equal(plain["pixel_values"], normalize(Squares(1)[0]["image"]))
    assert plain["labels"].dtype == torch.int64


@forks
def test_worker_processes_change_nothing() -> None:
    stream = TrainingStream(Squares(5), TRANSFORMS, seed=3, length=12)
    join = partial(collate, ignore_index=250)
    alone = list(DataLoader(stream, batch_size=4, collate_fn=join))
    shared = list(DataLoader(stream, batch_size=4, collate_fn=join, num_workers=2))
    assert len(alone) == 3
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))


@forks
@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_error_stays_one_line(workers: int) -> None:
    stream = TrainingStream(Squares(4, broken=2), [], seed=0, length=4)
    with pytest.raises(DataError) as caught, plain_data_errors():
        list(DataLoader(stream, batch_size=1, num_workers=workers))
    assert str(caught.value) == "images/7.png: damaged image"


def test_wrong_streams_are_refused() -> None:
    with pytest.raises(DataError, match="no images"):
        TrainingStream(Squares(0), [], seed=0, length=1)
    with pytest.raises(ValueError, match="length must be positive"):
        TrainingStream(Squares(1), [], seed=0, length=0)
    with pytest.raises(ValueError, match="seed not negative"):
        TrainingStream(Squares(1), [], seed=-1, length=1)
    stream = TrainingStream(Squares(2), [], seed=0, length=3)
    for index in (3, -1):
        with pytest.raises(IndexError):
            stream[index]


def test_a_batch_is_padded_to_its_largest_sample() -> None:
    def sample(height: int, width: int) -> TrainingSample:
        return {"pixel_values": torch.ones(3, height, width), "labels": torch.ones(height, width).long()}

    batch = collate([sample(40, 10), sample(33, 50)], ignore_index=250)
    assert batch["pixel_values"].shape == (2, 3, 40, 50)
    assert batch["labels"].shape == (2, 40, 50)
    assert batch["pixel_values"][0, :, :, :10].eq(1).all() and batch["pixel_values"][0, :, :, 10:].eq(0).all()
    assert batch["labels"][1, :33].eq(1).all() and batch["labels"][1, 33:].eq(250).all()
    assert collate([sample(1, 100)], ignore_index=250)["labels"].shape == (1, 32, 100)
