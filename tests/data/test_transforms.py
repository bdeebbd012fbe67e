import colorsys
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torchvision.tv_tensors import Image, Mask

from ccsegformer.data.pixels import IMAGE_MEAN, IMAGE_STD, MEAN_COLOR, BandStatistics, normalize
from ccsegformer.data.transforms import (
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Invert,
    PhotometricDistortion,
    RandomCrop,
    RandomResize,
    Rotate90,
    Transform,
    VerticalFlip,
    apply_transforms,
    window_size,
)

IGNORE = 65535
CHAIN = TypeAdapter(list[Transform])
PHOTOMETRIC = (Invert, Grayscale, GaussianBlur, PhotometricDistortion)

probabilities = st.sampled_from([0.25, 0.5, 1.0])
crops = st.builds(
    RandomCrop,
    probability=probabilities,
    sizes=st.lists(st.integers(1, 150), min_size=1).map(tuple),
    max_class_share=st.sampled_from([None, 0.01, 0.75]),
    pad=st.booleans(),
)
flips = st.one_of(
    st.builds(kind, probability=probabilities) for kind in (HorizontalFlip, VerticalFlip, Rotate90)
)
resizes = st.builds(RandomResize, probability=probabilities)
photometric = st.one_of(st.builds(kind, probability=probabilities) for kind in PHOTOMETRIC)
sides = st.integers(1, 120)
seeds = st.integers(0, 2**32)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def position_map(height: int, width: int) -> tuple[Image, Mask]:
    """Return an image and a mask that encode pixel positions: (2 x, 2 y, 0) and y * 200 + x."""
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
    # Nearest labels are at most half a pixel off; pixels are larger in a smaller image.
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
    "settings",
    [
        *({"name": name} for name in ("horizontal_flip", "vertical_flip", "rotate90", "gaussian_blur")),
        *({"name": name} for name in ("invert", "grayscale")),
        *({"name": name} for name in ("photometric_distortion", "random_resize", "random_crop")),
        {"name": "random_resize", "scale": [30, 20]},
        {"name": "random_crop", "sizes": [8], "max_class_share": 0.01},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
@pytest.mark.parametrize("shape", [(1, 1), (40, 1), (1, 40), (17, 23)])
def test_every_transform_takes_any_shape_and_draws_alike(
    settings: dict[str, Any], shape: tuple[int, int]
) -> None:
    pair = position_map(*shape)
    before = torch.get_rng_state()
    states = []
    for values in ({**settings, "probability": 0.0}, {**settings, "probability": 1.0}, settings):
        probability = values.get("probability", 1)
        (transform,) = CHAIN.validate_python([values])
        generator = seeded(3)
        image, mask = transform(*pair, generator, ignore_index=IGNORE)
        states.append(generator.get_state())
        assert image.shape == (3, *mask.shape)
        assert probability == 1 or (image is pair[0] and mask is pair[1])
    assert all(torch.equal(states[0], state) for state in states), "the draws depend on the outcome"
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


def test_flips_and_quarter_turns() -> None:
    image, mask = position_map(20, 30)
    flipped, labels = VerticalFlip(probability=1)(image, mask, seeded(0))
    assert torch.equal(flipped, image.flip(1)) and torch.equal(labels, mask.flip(0))
    counts = torch.zeros(4)
    for seed in range(600):
        turned, labels = Rotate90(probability=1)(image, mask, seeded(seed))
        (turns,) = [k for k in (1, 2, 3) if torch.equal(labels, mask.rot90(k))]
        assert torch.equal(turned, image.rot90(turns, (1, 2)))
        assert isinstance(turned, Image) and isinstance(labels, Mask)
        counts[turns] += 1
    assert counts[0] == 0 and counts[1:].min() > 160  # 200 each


BANDS = st.sampled_from([(torch.uint8, 1), (torch.uint8, 4), (torch.float32, 3), (torch.float32, 12)])


@settings(max_examples=60, deadline=None)
@given(BANDS, st.lists(st.one_of(flips, crops, resizes), max_size=5), sides, sides, seeds)
def test_other_bands_move_as_colours_do(
    bands: tuple[torch.dtype, int], chain: list[Transform], height: int, width: int, seed: int
) -> None:
    dtype, count = bands
    color = tuple(float(10 + band) for band in range(count))
    image = Image(torch.tensor(color).to(dtype)[:, None, None].expand(-1, height, width).clone())
    _, mask = position_map(height, width)
    _, expected = apply_transforms(chain, *position_map(height, width), seeded(seed), ignore_index=IGNORE)
    image, mask = apply_transforms(chain, image, mask, seeded(seed), ignore_index=IGNORE, color=color)
    assert torch.equal(mask, expected) and image.shape == (count, *mask.shape) and image.dtype == dtype
    for band, value in zip(image.as_subclass(torch.Tensor), color, strict=True):  # padding has it, too
        torch.testing.assert_close(band.float(), torch.full_like(band, value, dtype=torch.float32))


def test_the_window_that_a_chain_needs() -> None:
    resize, crop = RandomResize(ratio=(0.5, 2)), RandomCrop(sizes=(128, 256))
    assert window_size([], 512) == window_size([resize, HorizontalFlip()], 512) == 512
    assert window_size([crop], 512) == window_size([crop, resize], 512) == 256
    assert window_size([resize, HorizontalFlip(), crop], 512) == 512
    assert window_size([RandomResize(ratio=(0.3, 2)), crop], 512) == 854
    assert window_size([RandomResize(ratio=(1.5, 2)), crop], 512) == 256
    assert window_size([RandomResize(scale=(2048, 512)), crop], 512) == 256


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


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.floats(0.5, 2), st.integers(1, 150), st.integers(1, 150))
def test_a_resize_to_a_scale_fits_it_and_keeps_the_aspect_ratio(
    height: int, width: int, ratio: float, one: int, other: int
) -> None:
    resize = RandomResize(probability=1, ratio=(ratio, ratio), scale=(one, other))
    _, mask = resize(*position_map(height, width), seeded(0))
    long, short = ratio * max(one, other), ratio * min(one, other)
    factor = min(long / max(height, width), short / min(height, width))  # the largest that fits
    for side, made in zip((height, width), mask.shape, strict=True):
        assert made == 1 or abs(made - factor * side) <= 0.5 + 1e-6
    assert max(mask.shape) <= max(1, long + 0.5) and min(mask.shape) <= max(1, short + 0.5)


@pytest.mark.parametrize(
    ("shape", "ratio", "resized"),
    [
        ((512, 683), 1.0, (512, 683)),
        ((300, 400), 2.0, (1024, 1365)),
        ((1000, 700), 0.5, (366, 256)),
        ((200, 2000), 1.0, (205, 2048)),
    ],
)
def test_a_scale_is_the_literature_s(shape: tuple[int, int], ratio: float, resized: tuple[int, int]) -> None:
    image, mask = (
        Image(torch.zeros(3, *shape, dtype=torch.uint8)),
        Mask(torch.zeros(shape, dtype=torch.uint8)),
    )
    for scale in ((2048, 512), (512, 2048)):
        resize = RandomResize(probability=1, ratio=(ratio, ratio), scale=scale)
        assert resize(image, mask, seeded(0))[1].shape == resized


def test_without_padding_a_smaller_side_stays() -> None:
    for height, width in ((10, 50), (50, 10), (10, 10), (50, 50)):
        image, mask = position_map(height, width)
        cut, labels = RandomCrop(probability=1, sizes=(20,), pad=False)(image, mask, seeded(0))
        assert labels.shape == cut.shape[1:] == (min(height, 20), min(width, 20))
        assert (labels != IGNORE).all()


def shares(mask: Mask) -> list[float]:
    """Return the share of each class among the labelled pixels."""
    _, counts = mask[mask != 255].unique(return_counts=True)
    return [count / sum(counts.tolist()) for count in counts.tolist()]


def test_a_crop_is_drawn_again_until_no_class_fills_it() -> None:
    image = Image(torch.zeros(3, 40, 40, dtype=torch.uint8))
    mask = Mask(torch.zeros(40, 40, dtype=torch.uint8))
    mask[:, 30:] = 1  # 6 of the 25 places across have a share of less than 0.75
    kept = {}
    for share in (None, 0.75):
        crop = RandomCrop(probability=1, sizes=(16,), max_class_share=share)
        crops = [crop(image, mask, seeded(seed))[1] for seed in range(400)]
        assert {cut.shape for cut in crops} == {(16, 16)}
        kept[share] = [max(shares(cut)) < 0.75 for cut in crops]
        if share is None:
            free = crops
    assert sum(kept[None]) / 400 == pytest.approx(6 / 25, abs=0.08)
    assert sum(kept[0.75]) / 400 == pytest.approx(1 - (19 / 25) ** 11, abs=0.04)
    for cut, at_first, good in zip(crops, free, kept[None], strict=True):
        assert not good or torch.equal(cut, at_first), "a first place that would do was given up"


def test_only_labelled_pixels_count_for_a_crop_s_classes() -> None:
    image, mask = position_map(30, 30)
    halves = Mask((torch.arange(900).reshape(30, 30) % 2).to(torch.uint8))
    halves[torch.rand(30, 30, generator=seeded(0)) < 0.9] = 255
    empty = Mask(torch.full((30, 30), 255, dtype=torch.uint8))
    one = Mask(torch.zeros(30, 30, dtype=torch.uint8))
    for seed in range(20):
        free = RandomCrop(probability=1, sizes=(20,))(image, mask, seeded(seed))[0]
        held = RandomCrop(probability=1, sizes=(20,), max_class_share=0.75)
        assert torch.equal(held(image, halves, seeded(seed))[0], free)
        last = held(image, empty, seeded(seed))[0]  # no position satisfies: the last one
        assert torch.equal(last, held(image, one, seeded(seed))[0])
        assert not torch.equal(last, free)


def test_a_class_share_changes_nothing_that_others_draw() -> None:
    mask = Mask(torch.zeros(30, 30, dtype=torch.uint8))
    states = []
    for share in (None, 0.75):
        generator = seeded(0)
        crop = RandomCrop(probability=1, sizes=(20,), max_class_share=share)
        crop(position_map(30, 30)[0], mask, generator)
        states.append(generator.get_state())
    assert torch.equal(*states)


def distorted(image: Image, **parts: float) -> Image:
    """Apply the named parts of photometric distortion, each with a draw in [0, 1)."""
    names = ("brightness", "contrast", "contrast_first", "saturation", "hue")
    coins = [0.0 if name in parts else 0.9 for name in names]
    values = [parts.get(name, 0.5) for name in names if name != "contrast_first"]
    mask = Mask(torch.zeros(image.shape[1:], dtype=torch.uint8))
    result, same = PhotometricDistortion()._apply(image, mask, coins + values, 255)
    assert same is mask and isinstance(result, Image) and result.dtype == torch.uint8
    return result


@pytest.mark.parametrize("draw", [0.0, 0.25, 0.6, 0.999])
def test_photometric_distortion_agrees_with_colorsys(draw: float) -> None:
    image = Image(torch.randint(0, 256, (3, 12, 13), generator=seeded(0), dtype=torch.uint8))
    image[:, :, :4] = torch.tensor([[0, 255, 7, 90], [0, 255, 7, 0], [0, 255, 7, 0]])[:, None]

    def expected(change: Any) -> torch.Tensor:
        pixels = [
            [255 * value for value in colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel)))]
            for pixel in (image.double() / 255).flatten(1).T.tolist()
        ]
        return torch.tensor(pixels).T.reshape(image.shape)

    turned = expected(lambda h, s, v: ((h + 0.1 * (2 * draw - 1)) % 1, s, v))
    assert (distorted(image, hue=draw) - turned).abs().max() <= 1
    saturated = expected(lambda h, s, v: (h, min(1, s * (0.5 + draw)), v))
    assert (distorted(image, saturation=draw) - saturated).abs().max() <= 0.51
    values = image.double()
    brighter = (values + 32 * (2 * draw - 1)).clamp(0, 255)
    assert (distorted(image, brightness=draw) - brighter).abs().max() < 1
    stronger = (values * (0.5 + draw)).clamp(0, 255)
    assert (distorted(image, contrast=draw) - stronger).abs().max() < 1


def test_the_parts_of_photometric_distortion_follow_one_another() -> None:
    image = Image(torch.randint(0, 256, (3, 12, 13), generator=seeded(0), dtype=torch.uint8))
    assert torch.equal(distorted(image), image)
    brighter, colours = {"brightness": 0.9}, {"saturation": 0.9, "hue": 0.9}
    last = distorted(distorted(distorted(image, **brighter), **colours), contrast=0.9)
    first = distorted(distorted(distorted(image, **brighter), contrast=0.9), **colours)
    assert not torch.equal(first, last)
    everything = {**brighter, **colours, "contrast": 0.9}
    assert torch.equal(distorted(image, **everything), last)
    assert torch.equal(distorted(image, **everything, contrast_first=0.0), first)


def test_each_part_of_photometric_distortion_has_a_fair_coin() -> None:
    mask, generator, trials = Mask(torch.zeros(1, 1)), seeded(0), 1500
    gray, red = (
        Image(torch.tensor(color, dtype=torch.uint8)[:, None, None]) for color in ((100,) * 3, (180, 100, 60))
    )
    distort = PhotometricDistortion(probability=1)
    grays = [distort(gray, mask, generator)[0][0].item() for _ in range(trials)]
    reds = [torch.equal(distort(red, mask, generator)[0], red) for _ in range(trials)]
    assert grays.count(100) / trials == pytest.approx(1 / 4, abs=0.04)  # brightness and contrast
    assert sum(reds) / trials == pytest.approx(1 / 16, abs=0.02)  # all four
    assert (100 - 32) * 0.5 - 1 <= min(grays) < 45 and 180 < max(grays) <= (100 + 32) * 1.5


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
        {"name": "random_resize", "scale": [2048]},
        {"name": "random_resize", "scale": [2048, 0]},
        {"name": "random_crop", "max_class_share": 0},
        {"name": "random_crop", "max_class_share": 75},
        {"name": "photometric_distortion", "hue": 18},
        {"name": "random_crop", "sizes": []},
        {"name": "random_crop", "sizes": [0]},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CHAIN.validate_python([wrong])


def test_settings_survive_a_round_trip() -> None:
    chain = [
        GaussianBlur(sigma=(1, 3)),
        PhotometricDistortion(),
        RandomResize(scale=(2048, 512)),
        RandomCrop(probability=1, sizes=(64, 128), max_class_share=0.75),
    ]
    assert CHAIN.validate_json(CHAIN.dump_json(chain)) == chain


def test_normalize_matches_its_formula() -> None:
    image = Image(torch.randint(0, 256, (5, 7, 3), generator=seeded(0), dtype=torch.uint8).permute(2, 0, 1))
    pixels = normalize(image)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
    torch.testing.assert_close(pixels.double(), (image.double() / 255 - mean) / std, rtol=1e-6, atol=1e-6)
    assert type(pixels) is torch.Tensor and pixels.is_contiguous() and pixels.dtype == torch.float32
    gray = Image(torch.tensor(MEAN_COLOR, dtype=torch.uint8)[:, None, None])
    assert normalize(gray).abs().max() < 0.01


def test_normalize_by_the_bands_own_statistics() -> None:
    image = Image(torch.randn(4, 5, 7, generator=seeded(0)) * 300 + 1000)
    before = image.clone()
    means, stds = (1000.0, 900.0, 0.0, -5.0), (300.0, 1.0, 20.0, 0.5)
    pixels = normalize(image, BandStatistics(means, stds))
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (means, stds))
    torch.testing.assert_close(pixels.double(), (before.double() - mean) / std, rtol=1e-5, atol=1e-5)
    assert torch.equal(image, before), "the image itself was changed"
