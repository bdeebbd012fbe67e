import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from ccsegformer.data.procedural._layout import draw_layout
from ccsegformer.data.procedural.scenes import PROCEDURAL_CLASSES, ProceduralScenes, _draw_scene, scene
from ccsegformer.errors import DataError

BARE, WHEAT, MAIZE, FOREST, RIVER, CANAL, ROAD, BUILDING, VEHICLE = range(9)
COUNT = 32


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [scene(7, index) for index in range(COUNT)]


def facts(mask: np.ndarray) -> tuple[bool, bool]:
    return bool((mask == WHEAT).any()), bool((mask == RIVER).any())


def landmark(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return rows and columns (N, 2) of the pixels that differ between two pictures."""
    return np.argwhere((first != second).any(axis=2))


def test_a_scene_depends_on_its_seed_and_index_alone() -> None:
    image, mask = scene(3, 5)
    scene(3, 6)
    np.random.default_rng().random()
    again, mask_again = scene(3, 5)
    assert np.array_equal(image, again) and np.array_equal(mask, mask_again)
    for other in (scene(3, 6), scene(4, 5)):
        assert (image != other[0]).mean() > 0.5
        assert (mask != other[1]).mean() > 0.2


def test_scenes_do_not_touch_the_global_generators() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    scene(0, 0, 128)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.parametrize("size", [128, 131, 400])
def test_scenes_of_any_size(size: int) -> None:
    for index in range(4):
        image, mask = scene(0, index, size)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        assert mask.shape == (size, size) and mask.dtype == np.uint8
        assert mask.max() < len(PROCEDURAL_CLASSES)
        assert image.std() > 15


def test_larger_scenes_keep_the_size_of_what_they_show() -> None:
    """Larger scenes show more, not larger things: at twice the width, the channel has half the share."""
    small = np.mean([np.isin(scene(0, index, 192)[1], (RIVER, CANAL)).mean() for index in range(4)])
    large = np.mean([np.isin(scene(0, index, 512)[1], (RIVER, CANAL)).mean() for index in range(4)])
    assert large < small / 1.8


def test_houses_do_not_touch() -> None:
    buildings = draw_layout(np.random.default_rng(0), 1024).buildings
    places = np.array([(building.x, building.y) for building in buildings])
    distances = np.hypot(*(places[:, None] - places).T)
    assert len(places) > 50 and distances[~np.eye(len(places), dtype=bool)].min() > 31


def test_every_class_has_a_sane_share(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    counts = np.bincount(
        np.concatenate([mask.ravel() for _, mask in scenes]), minlength=len(PROCEDURAL_CLASSES)
    )
    share = counts / counts.sum()
    assert share[[WHEAT, MAIZE]].min() > 0.12
    assert share[[BARE, FOREST, ROAD]].min() > 0.06
    assert share[[RIVER, CANAL]].min() > 0.04
    assert share[[BUILDING, VEHICLE]].min() > 0.01
    assert share.max() < 0.35


def test_a_scene_has_one_crop_and_one_channel_in_equal_shares(
    scenes: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    for _, mask in scenes:
        assert not ((mask == WHEAT).any() and (mask == MAIZE).any())
        assert not ((mask == RIVER).any() and (mask == CANAL).any())
    pairs = [facts(mask) for _, mask in scenes]
    assert all(
        pairs.count((wheat, river)) == COUNT // 4 for wheat in (True, False) for river in (True, False)
    )
    assert pairs[:4] != pairs[4:8] or pairs[:4] != pairs[8:12]  # the order within four is random


def test_colours_follow_the_mask(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    pixels = np.concatenate([image.reshape(-1, 3) for image, _ in scenes]).astype(float)
    labels = np.concatenate([mask.ravel() for _, mask in scenes])
    red, green, blue = np.array(
        [pixels[labels == label].mean(axis=0) for label in range(len(PROCEDURAL_CLASSES))]
    ).T
    for water in (RIVER, CANAL):
        assert blue[water] > red[water] + 10
    for land in (BARE, WHEAT, MAIZE):
        assert red[land] > blue[land] + 20
    assert green[FOREST] > max(red[FOREST], blue[FOREST])
    assert max(red[FOREST], green[FOREST]) < min(green[WHEAT], green[MAIZE], green[ROAD])
    assert red[VEHICLE] > red[ROAD] + 20


def test_mask_edges_lie_on_image_edges(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """The picture changes most where the label of the road ends; an error of one pixel would show."""

    def contrast(image: np.ndarray, mask: np.ndarray, shift: int) -> float:
        road = np.roll(mask == ROAD, shift, axis=1)
        edge = road[:, 1:] != road[:, :-1]
        step = np.abs(np.diff(image.astype(float), axis=1)).mean(axis=2)
        return float(step[edge].mean())

    aligned, *shifted = (
        np.mean([contrast(image, mask, shift) for image, mask in scenes]) for shift in (0, -3, 3)
    )
    assert aligned > 1.2 * max(shifted)


def test_nothing_but_the_farmyard_tells_the_crop() -> None:
    """Changing the crop changes no pixel outside the farmyard and its shadows."""
    for index in range(8):
        wheat = _draw_scene(1, index, 256, wheat=True, river=index % 2 == 0)
        maize = _draw_scene(1, index, 256, wheat=False, river=index % 2 == 0)
        changed = landmark(wheat[0], maize[0])
        assert 400 < len(changed) < 0.12 * 256**2
        assert np.ptp(changed, axis=0).max() < 110
        fields = wheat[1] == WHEAT
        assert np.array_equal(fields, maize[1] == MAIZE)
        rows, columns = changed.T
        assert fields[rows, columns].sum() < 0.05 * fields.sum()  # a shadow may fall on a field


def test_nothing_but_its_head_tells_river_from_canal() -> None:
    for index in range(8):
        river = _draw_scene(1, index, 256, wheat=index % 2 == 0, river=True)
        canal = _draw_scene(1, index, 256, wheat=index % 2 == 0, river=False)
        changed = landmark(river[0], canal[0])
        assert 400 < len(changed) < 0.12 * 256**2
        assert np.ptp(changed, axis=0).max() < 120
        away = np.ones((256, 256), bool)
        low, high = changed.min(axis=0), changed.max(axis=0) + 1
        away[low[0] : high[0], low[1] : high[1]] = False
        assert np.array_equal((river[1] == RIVER)[away], (canal[1] == CANAL)[away])
        assert ((river[1] == RIVER) & away).sum() > 1500


def test_the_crops_look_alike(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Over many scenes, brightness, hue, contrast and row direction of the two crops agree."""
    looks: dict[int, list[np.ndarray]] = {WHEAT: [], MAIZE: []}
    for image, mask in scenes:
        crop = WHEAT if (mask == WHEAT).any() else MAIZE
        pixels = image[mask == crop].astype(float)
        grey = image.astype(float).mean(axis=2)
        slope_y, slope_x = np.gradient(grey)
        inside = mask == crop
        turn = np.stack([slope_x**2 - slope_y**2, 2 * slope_x * slope_y]) / (slope_x**2 + slope_y**2).mean()
        looks[crop].append(
            np.concatenate([pixels.mean(axis=0), pixels.std(axis=0), turn[:, inside].mean(axis=1)])
        )
    wheat, maize = np.array(looks[WHEAT]), np.array(looks[MAIZE])
    error = np.sqrt(wheat.var(axis=0) / len(wheat) + maize.var(axis=0) / len(maize))
    assert (np.abs(wheat.mean(axis=0) - maize.mean(axis=0)) < 3.5 * error).all()


def test_the_farmyard_lies_in_every_direction_and_at_every_distance() -> None:
    distances, angles = [], []
    for index in range(24):
        wheat, mask = _draw_scene(2, index, 256, wheat=True, river=True)
        maize, _ = _draw_scene(2, index, 256, wheat=False, river=True)
        centre = landmark(wheat, maize).mean(axis=0)
        offsets = np.argwhere(mask == WHEAT)[::50] - centre
        distances.append(np.hypot(*offsets.T))
        angles.append(np.arctan2(*offsets.T))
    distance = np.concatenate(distances)
    low, middle, high = np.quantile(distance, [0.1, 0.5, 0.9])
    assert low < 80 and middle > 110 and high > 190
    sectors = np.histogram(np.concatenate(angles), bins=16, range=(-np.pi, np.pi))[0]
    assert sectors.min() > 0.25 * sectors.mean()


def test_roads_go_on_under_trees(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Some road pixels are as green as forest, and most scenes have them."""
    hidden = []
    for image, mask in scenes:
        red, green, blue = image.astype(float).transpose(2, 0, 1)
        hidden.append(((mask == ROAD) & (green > 1.25 * blue) & (green > 1.1 * red)).sum())
    assert np.mean(np.array(hidden) > 150) > 0.7


def test_dataset_of_samples() -> None:
    data = ProceduralScenes("training", count=6, size=160)
    assert len(data) == len(data.names) == len(set(data.names)) == 6
    assert data.classes is PROCEDURAL_CLASSES and len(PROCEDURAL_CLASSES) == 9
    sample = data[2]
    assert sample["name"] == data.names[2]
    assert isinstance(sample["image"], tv_tensors.Image) and isinstance(sample["mask"], tv_tensors.Mask)
    assert sample["image"].shape == (3, 160, 160) and sample["image"].dtype == torch.uint8
    assert sample["mask"].shape == (160, 160) and sample["mask"].dtype == torch.uint8
    sample["image"].fill_(0)  # the caller may change a sample
    assert data[2]["image"].float().std() > 15
    assert torch.equal(data[-1]["mask"], data[5]["mask"])
    with pytest.raises(IndexError):
        data[6]


def test_splits_and_seeds_share_no_scene() -> None:
    images = [
        data[index]["image"].numpy().tobytes()
        for split in ("training", "validation")
        for seed in (0, 1)
        for data in [ProceduralScenes(split, count=3, size=128, seed=seed)]
        for index in range(3)
    ]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"split": "test", "count": 1}, "training, validation"),
        ({"split": "training", "count": 0}, "count 0"),
        ({"split": "training", "count": 1, "size": 64}, "size 64"),
        ({"split": "training", "count": 1, "seed": -1}, "seed -1"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        ProceduralScenes(**arguments)
