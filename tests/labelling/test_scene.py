"""Scenes in, maps out: small GeoTIFFs through a tiny network."""

import json
import warnings
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine
from rio_cogeo.cogeo import cog_validate

from ccsegformer.data.labels import Classes
from ccsegformer.data.pixels import normalize
from ccsegformer.errors import DataError, OutOfMemoryError, OutputError
from ccsegformer.labelling.engine import open_engine
from ccsegformer.labelling.labeller import predict_labels
from ccsegformer.labelling.scene import predict_scene
from ccsegformer.labelling.windows import label_image, spans, weights
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
from ccsegformer.raster.dataset import Scenes

CLASSES = Classes(("ground", "water", "road"), ((10, 20, 30), (40, 50, 60), (70, 80, 90)))
TINY = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 1, 1]}
TINY |= {"decoder_hidden_size": 8}
NORTH_UP = Affine(0.3, 0, 400000.1234567, 0, -0.3, 5000000.7654321)


def tiny_model(seed=0, **overrides):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = CrissCrossSegformerConfig(**{**TINY, "num_labels": 3, **overrides})
        model = CrissCrossSegformerForSemanticSegmentation(config)
        torch.nn.init.normal_(model.decode_head.classifier.weight)  # so that every class is somewhere
        return model.eval()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def write_scene(path, height=150, width=230, bands=3, seed=0, dtype="uint8", data=None, **profile):
    """Noise with some large shapes in it."""
    generator = np.random.default_rng(seed)
    if data is None:
        coarse = generator.integers(0, 200, (bands, -(-height // 16), -(-width // 16)))
        data = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
        data = data + generator.integers(1, 55, (bands, height, width))
    profile = {"crs": "EPSG:32632", "transform": NORTH_UP, **profile}
    profile = {key: value for key, value in profile.items() if value is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", height=height, width=width, count=len(data), dtype=dtype, **profile
        ) as target:
            target.write(data.astype(dtype))
    return path


def read(path, band=1):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as source:
            return source.read(band)


def image(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as source:
            return torch.from_numpy(source.read())


def test_one_window_gives_the_labels_of_the_whole_image(model, tmp_path):
    scene = write_scene(tmp_path / "scene.tif")
    predict_scene(model, scene, tmp_path / "map.tif", classes=CLASSES)
    expected = predict_labels(model, image(scene)).numpy()
    assert len(np.unique(expected)) == 3
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), expected)


@pytest.mark.parametrize(("bands", "dtype"), [(5, "uint16"), (1, "int16"), (2, "float32"), (4, "uint8")])
def test_other_bands_are_mapped_as_they_are_evaluated(tmp_path, bands, dtype):
    means, stds = [100.0 + 10 * band for band in range(bands)], [50.0 + band for band in range(bands)]
    model = tiny_model(num_channels=bands, band_means=means, band_stds=stds)
    (tmp_path / "validation").mkdir()
    data = np.random.default_rng(1).integers(1, 200, (bands, 15, 23)).repeat(10, axis=1).repeat(10, axis=2)
    data[:, 40:90, 60:100] = 0
    scene = tmp_path / "validation" / "s.tif"
    options = {"photometric": "MINISBLACK"} if bands == 4 else {}
    write_scene(scene, data=data, dtype=dtype, nodata=0, **options)
    write_scene(tmp_path / "validation" / "s_mask.tif", data=np.zeros((1, 150, 230)))
    [sample] = Scenes(tmp_path, "validation")
    expected = predict_labels(model, sample["image"]).numpy()
    assert len(np.unique(expected)) > 1
    expected[40:90, 60:100] = 255
    predict_scene(model, scene, tmp_path / "map.tif", classes=CLASSES)
    found = read(tmp_path / "map.tif")
    np.testing.assert_array_equal(found == 255, expected == 255)
    assert (found != expected).sum() <= 2  # logits of two classes may tie, and each engine rounds its own way
    photograph = label_image(model, sample["image"], 256, 64)  # all pixels count
    assert (photograph != predict_labels(model, sample["image"])).sum() <= 2


def blended(model, scene, window, overlap):
    """The definition: weighted scores of all windows in one array, K x H x W."""
    pixels = normalize(image(scene))
    _, height, width = pixels.shape
    total = torch.zeros(3, height, width, dtype=torch.float64)
    sides = (spans(side, window, overlap) for side in (height, width))
    for rows, columns in product(*sides):
        part = pixels[None, :, rows.start : rows.stop, columns.start : columns.stop]
        with torch.inference_mode():
            logits = F.interpolate(model(pixel_values=part).logits, size=part.shape[2:], mode="bilinear")[0]
        scores = logits.double()
        ramps = (np.pad(weights(s), (s.rise - s.start, s.stop - s.end)) for s in (rows, columns))
        scores *= torch.from_numpy(np.outer(*ramps))
        total[:, rows.start : rows.stop, columns.start : columns.stop] += scores
    return total


def test_windows_are_blended_as_defined(model, tmp_path):
    scene = write_scene(tmp_path / "scene.tif", 205, 330)
    options = {"classes": CLASSES, "window": 96, "overlap": 32, "confidence": True}
    predict_scene(model, scene, tmp_path / "map.tif", **options)
    expected = blended(model, scene, 96, 32)
    second, first = expected.sort(dim=0).values[-2:]
    clear = (first - second > 1e-5).numpy()
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[clear], expected.argmax(dim=0).numpy()[clear])
    probability = expected.softmax(dim=0)
    found = read(tmp_path / "map.tif", 2) / 254
    np.testing.assert_allclose(found, probability.amax(dim=0).numpy(), atol=0.5 / 254 + 1e-4)


@pytest.mark.parametrize("transform", [NORTH_UP, Affine(0.3, 0.07, 4e5, 0.06, -0.31, 5e6), None])
@pytest.mark.parametrize("crs", ["EPSG:32632", "EPSG:4326", None])
def test_the_map_is_where_the_scene_is(model, tmp_path, transform, crs):
    if crs == "EPSG:4326" and transform is NORTH_UP:
        transform = Affine(0.001, 0, 179.9, 0, -0.001, 10)  # across the antimeridian
    scene = write_scene(tmp_path / "scene.tif", transform=transform, crs=crs)
    done = predict_scene(model, scene, tmp_path / "map.tif", classes=CLASSES, window=96)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(scene) as source, rasterio.open(done.path) as found:
            assert found.crs == source.crs
            assert found.transform == source.transform
            assert found.shape == source.shape
    assert ("no coordinate reference system" in " ".join(done.notes)) is (crs is None)


@pytest.mark.parametrize(("count", "confidence"), [(3, False), (3, True), (300, False), (300, True)])
def test_the_map_is_a_cloud_optimized_geotiff(tmp_path, count, confidence):
    model = tiny_model(num_labels=count)
    names = tuple(f"class & {index}" for index in range(count))
    classes = Classes(names, ignore_index=max(255, count))
    scene = write_scene(tmp_path / "scene.tif", 530, 600)
    predict_scene(model, scene, tmp_path / "map.tif", classes=classes, confidence=confidence)
    valid, errors, hints = cog_validate(tmp_path / "map.tif", strict=True, quiet=True)
    assert valid, (errors, hints)
    with rasterio.open(tmp_path / "map.tif") as found:
        assert found.count == 1 + confidence
        assert found.dtypes[0] == ("uint8" if count == 3 else "uint16")
        assert found.nodata == (255 if count == 3 else 65535 if confidence else 300)
        assert found.block_shapes[0] == (512, 512)
        assert found.overviews(1) == [2]
        assert [what.name for what in found.colorinterp] == ["palette", "undefined"][: found.count]
        colors = found.colormap(1)
        assert tuple(colors[index][:3] for index in range(count)) == classes.palette
        assert tuple(json.loads(found.tags(1)["class_names"])) == names
        if confidence:
            assert found.descriptions == ("class", "confidence")
            assert found.scales[1] == pytest.approx(1 / (254 if count == 3 else 65534))
        rasterio.shutil.copy(found, tmp_path / "said.vrt", driver="VRT")
    assert "<Category>class &amp; 2</Category>" in (tmp_path / "said.vrt").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {
        "scene.tif",
        "map.tif",
        "map.tif.aux.xml",
        "said.vrt",
    }
    (tmp_path / "map.tif.aux.xml").unlink()
    with rasterio.open(tmp_path / "map.tif") as alone:  # what is in the file itself
        assert [what.name for what in alone.colorinterp] == ["palette", "undefined"][: alone.count]
        assert alone.descriptions[0] == "class"


def test_overviews_hold_the_commonest_class(model, tmp_path):
    scene = write_scene(tmp_path / "scene.tif", 600, 600)
    predict_scene(model, scene, tmp_path / "map.tif", classes=CLASSES)
    with rasterio.open(tmp_path / "map.tif", overview_level=0) as overview:
        small = overview.read(1)
    blocks = read(tmp_path / "map.tif").reshape(300, 2, 300, 2).swapaxes(1, 2).reshape(300, 300, 4)
    counts = (blocks[..., None, :] == np.arange(3)[:, None]).sum(axis=-1)
    chosen = np.take_along_axis(counts, small[..., None].astype(int), axis=-1)[..., 0]
    assert (chosen == counts.max(axis=-1)).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 200), (200, 1), (20, 30), (97, 96), (300, 100)])
def test_any_size(model, tmp_path, height, width):
    scene = write_scene(tmp_path / "scene.tif", height, width)
    predict_scene(model, scene, tmp_path / "map.tif", classes=CLASSES, window=96)
    found = read(tmp_path / "map.tif")
    assert found.shape == (height, width) and found.max() < 3


def with_hole(path, how):
    generator = np.random.default_rng(0)
    data = generator.integers(1, 255, (3, 200, 330))
    empty = np.zeros((200, 330), bool)
    empty[20:150, 30:290] = True  # holds whole windows
    if how == "nodata":
        data[:, empty] = 0
        return write_scene(path, 200, 330, data=data, nodata=0), empty
    data = np.concatenate([data, np.where(empty, 0, 255)[None]])
    return write_scene(path, 200, 330, data=data, photometric="RGB", alpha="YES"), empty


@pytest.mark.parametrize("how", ["nodata", "alpha"])
@pytest.mark.parametrize("ignore_index", [255, 7, 1000])
def test_pixels_without_data_stay_so(model, tmp_path, how, ignore_index):
    scene, empty = with_hole(tmp_path / "scene.tif", how)
    classes = Classes(CLASSES.names, CLASSES.palette, ignore_index)
    predict_scene(model, scene, tmp_path / "map.tif", classes=classes, window=64, overlap=32)
    with rasterio.open(tmp_path / "map.tif") as found:
        assert found.nodata == min(ignore_index, 255)
    labels = read(tmp_path / "map.tif")
    np.testing.assert_array_equal(labels == min(ignore_index, 255), empty)
    assert set(np.unique(labels[~empty])) == {0, 1, 2}


def test_nothing_but_nodata_is_said(model, tmp_path):
    scene = write_scene(tmp_path / "scene.tif", data=np.zeros((3, 100, 200)), nodata=0)
    done = predict_scene(model, scene, tmp_path / "map.tif", classes=CLASSES, window=96)
    assert (read(done.path) == 255).all()
    assert "no pixel has data" in done.notes[0]


def test_a_window_that_does_not_fit_is_halved(model, tmp_path):
    scene = write_scene(tmp_path / "scene.tif", height=280, width=600)
    engine = open_engine(model)

    def run(pixels):
        if pixels.shape[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return engine.run(pixels)

    small, limit = replace(engine, run=run), 300
    done = predict_scene(small, scene, tmp_path / "map.tif", classes=CLASSES)
    assert done.window == 256
    assert done.notes[0] == f"{scene}: windows of 512 did not fit into cpu's memory: took 256"
    predict_scene(model, scene, tmp_path / "expected.tif", classes=CLASSES, window=256)
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "expected.tif").read_bytes()
    for too_small, window in ((300, 512), (100, None)):  # one that was asked for; not even the smallest
        limit = too_small
        with pytest.raises(
            OutOfMemoryError, match="do not fit into the memory of cpu: take a smaller window"
        ):
            predict_scene(small, scene, tmp_path / "none.tif", classes=CLASSES, window=window)
    assert not [path for path in tmp_path.iterdir() if "none" in path.name]


def test_the_models_mode_is_kept(model, tmp_path):
    scene = write_scene(tmp_path / "scene.tif")
    predict_scene(model.train(), scene, tmp_path / "a.tif", classes=CLASSES)
    assert model.training
    predict_scene(model.eval(), scene, tmp_path / "b.tif", classes=CLASSES)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: write_scene(path, bands=5), "5 bands for a model of 3"),
        (lambda path: write_scene(path, bands=1), "1 band for a model of 3"),
        (lambda path: write_scene(path, dtype="uint16"), "uint16 values for a model of 8-bit colours"),
        (lambda path: path.write_text("no raster"), "not a raster that can be read"),
        (lambda path: None, "no such file"),
    ],
)
def test_scenes_that_cannot_be_used(model, tmp_path, make, message):
    make(tmp_path / "scene.tif")
    before = set(tmp_path.iterdir())
    with pytest.raises(DataError, match=message) as caught:
        predict_scene(model, tmp_path / "scene.tif", tmp_path / "map.tif", classes=CLASSES)
    assert "\n" not in str(caught.value) and "scene.tif" in str(caught.value)
    assert set(tmp_path.iterdir()) == before


def test_a_truncated_scene_leaves_nothing_behind(model, tmp_path):
    scene = write_scene(tmp_path / "scene.tif", 300, 100)
    scene.write_bytes(scene.read_bytes()[:-20000])
    with pytest.raises(DataError, match=r"rows 96-223, columns 0-99 cannot be read"):
        predict_scene(model, scene, tmp_path / "map.tif", classes=CLASSES, window=128, overlap=32)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_outputs_that_cannot_be_written(model, tmp_path):
    scene = write_scene(tmp_path / "scene.tif")
    (tmp_path / "file").write_text("")
    for output, message in (
        (tmp_path, "is a folder"),
        (scene, "replace"),
        (tmp_path / "file" / "map.tif", "cannot be written"),
    ):
        with pytest.raises(OutputError, match=message) as caught:
            predict_scene(model, scene, output, classes=CLASSES)
        assert str(output.name) in str(caught.value)


def test_other_classes_than_the_models_are_refused(model, tmp_path):
    with pytest.raises(DataError, match="2 classes for a model of 3"):
        predict_scene(model, tmp_path / "a.tif", tmp_path / "b.tif", classes=Classes(("a", "b")))


def test_an_output_is_replaced_when_the_new_one_is_whole(model, tmp_path):
    scene = write_scene(tmp_path / "scene.tif")
    (tmp_path / "map.tif").write_text("old")
    predict_scene(model, scene, tmp_path / "map.tif", classes=CLASSES)
    assert read(tmp_path / "map.tif").shape == (150, 230)
