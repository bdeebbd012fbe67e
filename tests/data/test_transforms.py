import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torchvision.tv_tensors import Image, Mask

from ccsegformer.data.transforms import (
    IMAGE_MEAN,
    IMAGE_STD,
    MEAN_COLOR,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Invert,
    RandomCrop,
    RandomResize,
    Transform,
    apply_transforms,
    normalize,
)

IGNORE = 65535
CHAIN = TypeAdapter(list[Transform])
PHOTOMETRIC = (Invert, Grayscale, GaussianBlur)

probabilities = st.sampled_from([0.25, 0.5, 1.0])
crops = st.builds(
    RandomCrop, probability=probabilities, sizes=st.lists(st.integers(1, 150), min_size=1).map(tuple)
)
flips = st.builds(HorizontalFlip, probability=probabilities)
resizes = st.builds(RandomResize, probability=probabilities)
photometric = st.one_of(st.builds(kind, probability=probabilities) for kind in PHOTOMETRIC)
sides = st.integers(1, 120)
seeds = st.integers(0, 2**32)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def position_map(height: int, width: int) -> tuple[Image, Mask]:
    """An image and a mask that both say where each pixel was: (2 x, 2 y, 0) and y * 200 + x."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return Image(torch.stack([2 * x, 2 * y, 0 * x]).to(torch.uint8)), Mask((y * 200 + x).to(torch.int32))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(flips, crops), max_size=5), sides, sides, seeds)
def test_flips_and_crops_keep_every_pixel_with_its_label(
    chain: list[Transform], height: int, width: int, seed: int
) -> None:
    image, mask = apply_transforms(chain, *position_map(height, width), seeded(seed), ignore_index=IGNORE)
    assert image.shape[1:] == mask.shape
    assert isinstance(image, Image) and isinstance(mask, Mask)
    x, y = mask % 200, mask // 200
    padded = mask == IGNORE
    expected = torch.stack([2 * x, 2 * y, 0 * x])
    expected[:, padded] = torch.tensor(MEAN_COLOR, dtype=expected.dtype)[:, None]
    assert torch.equal(image.int(), expected)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(flips, crops, resizes), max_size=5), sides, sides, seeds)
def test_any_geometry_keeps_image_and_mask_aligned(
    chain: list[Transform], height: int, width: int, seed: int
) -> None:
    image, mask = apply_transforms(chain, *position_map(height, width), seeded(seed), ignore_index=IGNORE)
    assert image.shape[1:] == mask.shape
    # Resizing blends padding into its neighbours, which a crop may then keep: a white image shows them.
    white = Image(torch.full((3, height, width), 255, dtype=torch.uint8))
    white, _ = apply_transforms(
        chain, white, position_map(height, width)[1], seeded(seed), ignore_index=IGNORE
    )
    inside = (white == 255).all(dim=0).as_subclass(torch.Tensor) & (mask != IGNORE).as_subclass(torch.Tensor)
    positions = image.as_subclass(torch.Tensor).float() / 2
    # A nearest label is at most half a pixel off, and pixels grow where a chain makes the image smaller.
    shrinks = sum(isinstance(transform, RandomResize) for transform in chain)
    tolerance = 1 + sum(2.0**k for k in range(shrinks + 1))
    labels = mask.as_subclass(torch.Tensor)
    for position, label in ((positions[0], labels % 200), (positions[1], labels // 200)):
        assert ((position - label).abs()[inside] <= tolerance).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(flips, crops, resizes, photometric), max_size=6), sides, sides, seeds)
def test_colours_never_move_a_label(chain: list[Transform], height: int, width: int, seed: int) -> None:
    geometry = [
        transform.model_copy(update={"probability": 0.0}) if isinstance(transform, PHOTOMETRIC) else transform
        for transform in chain
    ]
    pair = position_map(height, width)
    image, mask = apply_transforms(chain, *pair, seeded(seed), ignore_index=IGNORE)
    _, expected = apply_transforms(geometry, *pair, seeded(seed), ignore_index=IGNORE)
    assert torch.equal(mask, expected)
    assert image.shape[1:] == mask.shape
    assert image.dtype == torch.uint8


def test_resizing_to_a_single_pixel() -> None:
    resize = RandomResize(probability=1, ratio=(0.5, 0.5))
    image, mask = resize(*position_map(2, 1), seeded(0))
    assert isinstance(image, Image) and isinstance(mask, Mask)
    assert image.flatten().tolist() == [0, 1, 0] and mask.shape == (1, 1)


def test_resized_labels_are_those_of_the_pixel_centres() -> None:
    resize = RandomResize(probability=1, ratio=(1 / 3, 1 / 3))
    image, mask = resize(*position_map(30, 60), seeded(0))
    assert mask.shape == (10, 20)
    assert torch.equal(mask[1:-1, 1:-1] % 200, image[0, 1:-1, 1:-1] // 2)
    assert torch.equal(mask[1:-1, 1:-1] // 200, image[1, 1:-1, 1:-1] // 2)


@pytest.mark.parametrize(
    "name", ["horizontal_flip", "invert", "grayscale", "gaussian_blur", "random_resize", "random_crop"]
)
@pytest.mark.parametrize("shape", [(1, 1), (40, 1), (1, 40), (17, 23)])
def test_every_transform_takes_any_shape_and_draws_alike(name: str, shape: tuple[int, int]) -> None:
    pair = position_map(*shape)
    before = torch.get_rng_state()
    states = []
    for probability in (0.0, 1.0):
        (transform,) = CHAIN.validate_python([{"name": name, "probability": probability}])
        generator = seeded(3)
        image, mask = transform(*pair, generator, ignore_index=IGNORE)
        states.append(generator.get_state())
        assert image.shape == (3, *mask.shape)
        assert probability == 1 or (image is pair[0] and mask is pair[1])
    assert torch.equal(*states), "the number of draws depends on the outcome"
    assert torch.equal(before, torch.get_rng_state()), "drew from the global generator"


def test_each_transform_has_a_coin_of_its_own() -> None:
    image, mask = Image(torch.tensor([[[0, 1]]] * 3, dtype=torch.uint8)), Mask(torch.zeros(1, 2))
    generator = seeded(0)
    counts = torch.zeros(2, 2)
    trials = 4000
    for _ in range(trials):
        result, _ = apply_transforms([HorizontalFlip(), Invert()], image, mask, generator, ignore_index=255)
        inverted = result.max() > 1
        flipped = (result[0, 0, 0] > result[0, 0, 1]) != inverted
        counts[int(flipped), int(inverted)] += 1
    expected = torch.tensor([[9 / 16, 3 / 16], [3 / 16, 1 / 16]])
    assert (counts / trials - expected).abs().max() < 0.03


def test_colour_transforms_do_what_their_names_say() -> None:
    image = Image(torch.randint(0, 256, (3, 9, 11), generator=seeded(0), dtype=torch.uint8))
    mask = Mask(torch.zeros(9, 11, dtype=torch.uint8))
    inverted, _ = Invert(probability=1)(image, mask, seeded(0))
    assert torch.equal(inverted, 255 - image)
    gray, _ = Grayscale(probability=1)(image, mask, seeded(0))
    luma = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    assert (gray.float() - luma).abs().max() <= 1.1  # cut off, not rounded
    point = Image(torch.zeros(3, 21, 25, dtype=torch.uint8))
    point[:, 10, 12] = 255
    blurred, _ = GaussianBlur(probability=1, sigma=(1, 1))(point, Mask(torch.zeros(21, 25)), seeded(0))
    assert blurred[0, 10, 12] == round(255 / (2 * math.pi))  # the density's peak, 1 / (2 pi sigma^2)
    assert blurred[0, 10, 13] == blurred[0, 9, 12] == round(255 / (2 * math.pi) * math.exp(-0.5))


def test_resize_ratios_and_crop_places_cover_their_range() -> None:
    image, mask = position_map(100, 10)
    resize = RandomResize(probability=1)
    heights = [resize(image, mask, seeded(seed))[1].shape[0] for seed in range(200)]
    assert 50 <= min(heights) < 55 and 195 < max(heights) <= 200
    crop = RandomCrop(probability=1, sizes=(8, 12))
    seen = {tuple(crop(image, mask, seeded(seed), ignore_index=IGNORE)[1][0].tolist()) for seed in range(300)}
    assert {len(row) for row in seen} == {8, 12}
    assert {row.count(IGNORE) for row in seen} == {0, 2}
    assert {row[0] % 200 for row in seen if len(row) == 8} == {0, 1, 2}
    assert {row.index(next(v for v in row if v != IGNORE)) for row in seen if len(row) == 12} == {0, 1, 2}


def test_padding_of_an_8_bit_mask_holds_any_ignore_index() -> None:
    image, mask = Image(torch.zeros(3, 2, 2, dtype=torch.uint8)), Mask(torch.ones(2, 2, dtype=torch.uint8))
    _, padded = RandomCrop(probability=1, sizes=(4,))(image, mask, seeded(0), ignore_index=1000)
    assert (padded == 1000).sum() == 12
    assert (padded == 1).sum() == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "random_flip"},
        {"name": "invert", "p": 0.5},
        {"name": "invert", "probability": 1.5},
        {"name": "random_resize", "ratio": [2, 0.5]},
        {"name": "random_resize", "ratio": [0, 1]},
        {"name": "random_resize", "ratio": [1, math.inf]},
        {"name": "random_crop", "sizes": []},
        {"name": "random_crop", "sizes": [0]},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CHAIN.validate_python([wrong])


def test_settings_survive_a_round_trip() -> None:
    chain = [HorizontalFlip(), GaussianBlur(sigma=(1, 3)), RandomCrop(probability=1, sizes=(64, 128))]
    assert CHAIN.validate_json(CHAIN.dump_json(chain)) == chain


def test_normalize_matches_its_formula() -> None:
    image = Image(torch.randint(0, 256, (5, 7, 3), generator=seeded(0), dtype=torch.uint8).permute(2, 0, 1))
    pixels = normalize(image)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
    torch.testing.assert_close(pixels.double(), (image.double() / 255 - mean) / std, rtol=1e-6, atol=1e-6)
    assert type(pixels) is torch.Tensor and pixels.is_contiguous() and pixels.dtype == torch.float32
    gray = Image(torch.tensor(MEAN_COLOR, dtype=torch.uint8)[:, None, None])
    assert normalize(gray).abs().max() < 0.01
