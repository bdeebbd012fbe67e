"""Data set of georeferenced scenes with labels, read in windows."""

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ccsegformer.data.colors import read_class_file
from ccsegformer.data.dataset import Sample, to_labels
from ccsegformer.data.folder import files_by_stem
from ccsegformer.data.labels import Classes
from ccsegformer.data.layout import and_more, split_path, what_lies_there
from ccsegformer.errors import DataError
from ccsegformer.raster.labels import MaskRaster
from ccsegformer.raster.overlaps import warn_about_overlaps, warn_once
from ccsegformer.raster.polygon_files import PolygonFile, read_polygon_file
from ccsegformer.raster.polygon_labels import Polygons
from ccsegformer.raster.read import (
    MASK,
    MASK_DTYPES,
    RASTER_SUFFIXES,
    SCENE_MASK_SUFFIXES,
    Box,
    alpha_note,
    check_bands,
    fill_gaps,
    image_bands,
    open_raster,
    pixel_dtype,
    read_box,
)
from ccsegformer.raster.source_files import files_of

TILE = 512
"""Side, in pixels, of the tiles in which a split is scored."""
POLYGON_SUFFIXES = (".gpkg", ".geojson", ".shp", ".fgb", ".parquet")
SHAPEFILE_SUFFIXES = (".dbf", ".shx", ".prj", ".cpg")
"""Files beside a Shapefile that belong to it."""
DEFAULT_CLASSES = Classes(("background", "object"), ignore_index=65535)
"""Classes without a classes.json. 255 is not ignored: some masks use it for the object, others for nodata."""
OPEN_RASTERS = 8
"""Number of rasters that a process keeps open."""


class Scene(NamedTuple):
    """Scene and its labels."""

    path: Path
    name: str
    height: int
    width: int
    labels: MaskRaster | Polygons


class Bands(NamedTuple):
    """Bands that all scenes of a data set have in common."""

    number: int
    """Number of bands without alpha."""
    dtype: str
    has_alpha: bool
    rgb: tuple[int, int, int] | None
    """Indices, from 0, of the red, green and blue bands, if the files name them."""

    @property
    def is_rgb(self) -> bool:
        """Whether a scene has three 8-bit bands, as a photograph."""
        return self.number == 3 and self.dtype == "uint8"

    def __str__(self) -> str:
        return f"{self.number} band{'s' * (self.number > 1)} of {self.dtype}" + " and alpha" * self.has_alpha


class Scenes(Dataset[Sample]):
    """Scenes `DIR/SPLIT/NAME.tif`, labelled by `NAME_mask.tif`, `NAME_mask.png` or polygons.

    Polygons are in `NAME.gpkg` or `NAME.geojson`, or in one `polygons.gpkg` or `polygons.geojson` for the
    whole split. Sample i is tile i of 512 x 512 pixels, smaller at the edges: scenes in order of their names,
    each row by row. Pixels without data or label are ignored. Pixels without data get the mean of the other
    pixels of their window, band by band. Each process opens rasters when it needs them.

    Args:
        root: Folder DIR. Its `classes.json` names the classes; without it they are background and object.
        split: "training", "validation" or the name of another folder; the folder may be called by another of
            the split's names in `SPLIT_NAMES`, such as train or val.
        classes: Path of another `classes.json`.
        layer: Layer of the polygons; by default the only one.
        column: Column of the polygons' class; by default the first of `class`, `class_id` and `label`.
        bands: Numbers, from 1, of the bands to use, in this order, such as "4,3,2"; alpha may be among them.
            By default `image_bands`.

    Raises:
        DataError: there are no scenes, a scene has no labels, the bands of scenes differ, or a file cannot be
            used.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "training",
        *,
        classes: str | None = None,
        layer: str | None = None,
        column: str | None = None,
        bands: str | None = None,
    ) -> None:
        self.root = Path(root)
        self.chosen_bands = None if bands is None else _band_numbers(bands)
        folder, listing = split_path(self.root, split), Path(classes or self.root / "classes.json")
        images, masks = _images_and_masks(folder)
        self._has_class_file = classes is not None or listing.exists()
        self.classes: Classes = read_class_file(listing) if self._has_class_file else DEFAULT_CLASSES
        self._open = _OpenRasters()
        polygons = files_by_stem(folder, POLYGON_SUFFIXES)
        shared = None
        if "polygons" in polygons and images.keys() - masks.keys() - polygons.keys():
            shared = read_polygon_file(polygons["polygons"], self.classes, layer=layer, column=column)
            if shared.bounds is None:
                raise DataError(f"{shared.path}: holds no polygons")
        self.scenes: list[Scene] = []
        for name, path in images.items():
            with open_raster(path) as source:
                self._check_bands(path, source)
                labels: MaskRaster | Polygons
                if name in masks:
                    labels = MaskRaster(masks[name], source, self.classes)
                elif name in polygons:
                    file = read_polygon_file(polygons[name], self.classes, layer=layer, column=column)
                    labels = Polygons(file, source, self.classes)
                elif shared is not None:
                    labels = Polygons(shared, source, self.classes, shared=True)
                else:
                    raise DataError(
                        f"{folder / name}{MASK}.tif: mask is missing; a scene needs one, or polygons in "
                        f"{name}.gpkg, {name}.geojson or polygons.gpkg"
                    )
                self.scenes.append(Scene(path, name, source.height, source.width, labels))
        if (layer or column) and all(isinstance(scene.labels, MaskRaster) for scene in self.scenes):
            raise DataError(f"{folder}: holds masks alone; the options layer and column are for polygons")
        self._check_shared(shared)
        self._tiles = [
            (number, box)
            for number, scene in enumerate(self.scenes)
            for box in tiles(scene.height, scene.width, TILE)
        ]
        self.names: tuple[str, ...] = tuple(
            f"{self.scenes[number].name}_{box.top}_{box.left}" for number, box in self._tiles
        )
        warn_about_overlaps(self.root, split, images.values())

    def _check_shared(self, shared: PolygonFile | None) -> None:
        """Check that polygons for all scenes overlap one of them."""
        served = [s.labels for s in self.scenes if shared is not None and s.labels.path == shared.path]
        if served and not any(isinstance(labels, Polygons) and labels.overlaps for labels in served):
            raise DataError(f"{served[0].path}: does not overlap any scene of {self.root}")

    @property
    def files(self) -> dict[str, tuple[Path, ...]]:
        """Files behind each scene: its own, that of its labels, then tiles of a VRT and sidecars."""
        found = {}
        for scene in self.scenes:
            others = set(_files_behind(scene.path) | _files_behind(scene.labels.path))
            others -= {scene.path.resolve(), scene.labels.path.resolve()}
            found[scene.name] = (scene.path, scene.labels.path, *sorted(others))
        return found

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> Sample:
        """Read tile `index`."""
        return self.sample(*self._tiles[index], self.names[index])

    def sample(self, number: int, box: Box, name: str) -> Sample:
        """Read a box inside scene `number`. The image is uint8 if the scene is, else float32."""
        values, valid = self.pixels(number, box)
        labels = self.labels(number, box)
        labels[~valid] = self.classes.ignore_index
        narrow = np.uint8 if self.classes.ignore_index <= 255 else np.int32
        return {
            "image": tv_tensors.Image(torch.from_numpy(fill_gaps(values, valid))),
            "mask": tv_tensors.Mask(torch.from_numpy(labels.astype(narrow))),
            "name": name,
        }

    def pixels(self, number: int, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Read a box as `read_box` does: pixels (bands, H, W), and a mask (H, W) of those with data."""
        path = self.scenes[number].path
        return read_box(self._open.get(path, lambda: open_raster(path)), box, self.chosen_bands)

    def labels(self, number: int, box: Box) -> NDArray[np.int32]:
        """Read the class ids (H, W) of a box inside scene `number`, also where the scene has no data."""
        source = self.scenes[number].labels
        labels = source.read(self._open.get(source.path, source.open), box)
        try:
            if isinstance(source, MaskRaster) and not self.classes.colors:  # else they are classes already
                ids = torch.from_numpy(labels)
                labels = to_labels(ids, self.classes, source.path, top=box.top, left=box.left).int().numpy()
        except DataError as error:
            if self._has_class_file:
                raise
            raise DataError(f"{error}; name the classes in {self.root / 'classes.json'}") from None
        return labels

    def _check_bands(self, path: Path, source: Any) -> None:
        """Check that a scene has the same bands as those before it."""
        check_bands(source, self.chosen_bands or (), path)
        numbers = self.chosen_bands or image_bands(source)
        colors = [source.colorinterp[band - 1] for band in numbers]
        if ColorInterp.palette in colors:
            raise DataError(f"{path}: holds palette indices; convert to RGB with gdal_translate -expand rgb")
        wanted = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        red_green_blue = [colors.index(color) for color in wanted if color in colors]
        rgb = (red_green_blue[0], red_green_blue[1], red_green_blue[2]) if len(red_green_blue) == 3 else None
        has_alpha = len(image_bands(source)) < source.count and ColorInterp.alpha not in colors
        bands = Bands(len(numbers), pixel_dtype(source, numbers), has_alpha, rgb)
        if self.chosen_bands is None and (note := alpha_note(source, path)):
            every = ",".join(map(str, source.indexes))
            warn_once(f"{note}; to use it: --bands {every}, here and for predict")
        if not self.scenes:
            self.bands = bands
        elif bands[:2] != self.bands[:2]:
            raise DataError(f"{path}: {bands}, but {self.scenes[0].path} has {self.bands}")
        elif bands.rgb != self.bands.rgb:
            self.bands = self.bands._replace(rgb=None)


def tiles(height: int, width: int, size: int) -> list[Box]:
    """Divide a scene into boxes of at most `size` pixels a side, row by row."""
    return [
        Box(top, left, min(top + size, height), min(left + size, width))
        for top in range(0, height, size)
        for left in range(0, width, size)
    ]


def _band_numbers(bands: str) -> list[int]:
    """Read the numbers of bands, such as "4,3,2"."""
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in bands.split(",")]
    if min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise DataError(f"bands must be different numbers from 1, with commas between them, not {bands!r}")
    return numbers


def _files_behind(path: Path) -> set[Path]:
    """Return the local files that a raster or a file of polygons is made of."""
    if path.suffix.lower() in POLYGON_SUFFIXES:
        is_shapefile = path.suffix.lower() == ".shp"
        beside = {path.with_suffix(suffix) for suffix in SHAPEFILE_SUFFIXES} if is_shapefile else set()
        return {path.resolve()} | {file.resolve() for file in beside if file.exists()}
    with open_raster(path, MASK_DTYPES) as source:
        return files_of(source)


def _images_and_masks(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the paths of scenes and of masks by the name of the scene."""
    rasters = files_by_stem(folder, RASTER_SUFFIXES)
    images = {name: path for name, path in rasters.items() if not name.endswith(MASK)}
    masks = {
        name.removesuffix(MASK): path
        for name, path in files_by_stem(folder, SCENE_MASK_SUFFIXES).items()
        if name.endswith(MASK)
    }
    if not images:
        raise DataError(
            f"{folder}: no scenes ({', '.join(RASTER_SUFFIXES)}) in this split{what_lies_there(folder)}"
        )
    if orphans := sorted(masks.keys() - images.keys()):
        raise DataError(f"{masks[orphans[0]]}: mask without a scene{and_more(orphans)}")
    return images, masks


class _OpenRasters:
    """Cache of the rasters used last. Every process, forked or unpickled, opens its own."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._sources: OrderedDict[Path, Any] = OrderedDict()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _OpenRasters, ()

    def get(self, path: Path, opener: Callable[[], Any]) -> Any:
        """Return the raster of `path`, opened by `opener` if it is not open yet."""
        if self._process != os.getpid():  # forked: these handles are the parent's
            self._process, self._sources = os.getpid(), OrderedDict()
        if path not in self._sources:
            self._sources[path] = opener()
            if len(self._sources) > OPEN_RASTERS:
                _, oldest = self._sources.popitem(last=False)
                if oldest is not None:
                    oldest.close()
        self._sources.move_to_end(path)
        return self._sources[path]
