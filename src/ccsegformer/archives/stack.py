"""Open the assets of a scene as one raster: a small VRT, GDAL's format for files made of others."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader

from ccsegformer.archives.reference import SceneAsset, SceneReference
from ccsegformer.errors import DataError
from ccsegformer.files import write_atomically
from ccsegformer.raster.read import PIXEL_DTYPES, open_raster
from ccsegformer.raster.source_files import gdal_options, is_remote

VSI = {"http": "/vsicurl/http", "https": "/vsicurl/https", "s3": "/vsis3", "gs": "/vsigs", "az": "/vsiaz"}
"""GDAL's names of file systems, by scheme."""
GDAL_TYPES = {"uint8": "Byte", "uint16": "UInt16", "int16": "Int16", "float32": "Float32"}
COLOURS = {ColorInterp.red: "Red", ColorInterp.green: "Green", ColorInterp.blue: "Blue"}
PART = 1e-3
"""Share of a pixel by which grids may be rotated or sheared, from one side to the other."""


class _Layer(NamedTuple):
    """What a VRT says of an asset, so that GDAL opens it only when its pixels are read."""

    asset: SceneAsset
    crs: CRS | None
    transform: Affine
    width: int
    height: int
    dtypes: tuple[str, ...]
    block: tuple[int, int]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    nodata: tuple[float | None, ...]
    colors: tuple[ColorInterp, ...]
    has_mask: bool
    gcps: tuple[list[rasterio.control.GroundControlPoint], CRS | None]


class _Place(NamedTuple):
    """Where a layer lies on the grid of the VRT, in pixels."""

    left: float
    top: float
    width: float
    height: float


def opened_as_one(reference: SceneReference, folder: Path) -> str:
    """Return a path at which GDAL opens all assets of a scene as one raster.

    That is the asset itself if there is one and its item gives no scale, offset or nodata value. Otherwise it
    is `folder/NAME.vrt`, which is written unless it is there already; the same scene gives the same bytes.

    Several assets become the bands, in their order, on the grid of the one with the smallest pixels. Coarser
    ones are resampled by nearest neighbour: values stay those measured, none are mixed with pixels without
    data, and they do not depend on the window that is read. Values of the item replace the files' own.

    Args:
        reference: Scene without a `problem`.
        folder: Folder for the VRT; it is created.

    Raises:
        DataError: an asset cannot be read; or, of several, has more than one band, another CRS than the
            first, or does not cover the same ground as the finest, up to a pixel.
        OutputError: the VRT cannot be written.
    """
    assets = reference.assets
    if not assets:
        raise DataError(f"{reference.name}: {reference.problem or 'the scene has no assets'}")
    if len(assets) == 1 and (assets[0].scale, assets[0].offset, assets[0].nodata) == (None, None, None):
        return assets[0].href
    layers = [_described_layer(asset) for asset in assets]
    grid = min(layers, key=lambda layer: abs(layer.transform.determinant))
    if len(layers) > 1:
        _refuse_what_cannot_be_stacked(layers)
    content = _vrt(layers, grid)
    path = folder / f"{reference.name}.vrt"
    if not (path.is_file() and path.read_bytes() == content):  # an interrupted map continues if it is older
        write_atomically(path, content)
    return str(path)


def _described_layer(asset: SceneAsset) -> _Layer:
    with open_raster(asset.href) as source, gdal_options(asset.href):
        given = (asset.scale, asset.offset, asset.nodata)
        own = (source.scales, source.offsets, source.nodatavals)
        scales, offsets, nodata = (
            values if value is None else (value,) * source.count
            for value, values in zip(given, own, strict=True)
        )
        return _Layer(
            asset,
            source.crs,
            source.transform,
            source.width,
            source.height,
            source.dtypes,
            source.block_shapes[0],
            scales,
            offsets,
            nodata,
            source.colorinterp,
            _has_mask(source),
            source.gcps,
        )


def _has_mask(source: DatasetReader) -> bool:
    """Return whether the raster has a mask of its own, besides nodata values and alpha."""
    flags = source.mask_flag_enums[0]
    return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags


def _refuse_what_cannot_be_stacked(layers: Sequence[_Layer]) -> None:
    first = layers[0]
    for layer in layers:
        href, count = layer.asset.href, len(layer.dtypes)
        if count != 1:
            raise DataError(f"{href}: has {count} bands; stacked assets have one each")
        if layer.crs != first.crs:
            names = [str(crs and crs.to_string()) for crs in (layer.crs, first.crs)]
            raise DataError(f"{href}: is in {names[0]}, but {first.asset.href} in {names[1]}")


def _vrt(layers: Sequence[_Layer], grid: _Layer) -> bytes:
    """Describe the layers' bands as one raster on the grid of one of them."""
    root = ET.Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
    if grid.crs:
        _add(root, "SRS", grid.crs.to_wkt())
    if not grid.transform.is_identity:
        _add(root, "GeoTransform", ", ".join(map(repr, grid.transform.to_gdal())))
    _add_gcps(root, grid)
    dtype = _common_type(layers)
    for layer in layers:
        place = _place_of(layer, grid)
        for band in range(1, len(layer.dtypes) + 1):
            element = _add_band(root, layer, band, place, dtype, grid.block)
            if len(layers) > 1 and layer.has_mask:  # each of a stack has its own
                _add_mask(element, layer, place)
    if len(layers) == 1 and grid.has_mask:
        _add_mask(root, grid, _place_of(grid, grid))
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8") + b"\n"


def _place_of(layer: _Layer, grid: _Layer) -> _Place:
    """Return where a layer lies on the grid; the two cover the same ground up to a pixel."""
    if layer is grid:
        return _Place(0, 0, grid.width, grid.height)
    across = ~grid.transform @ layer.transform
    place = _Place(*(float(v) for v in (across.c, across.f, across.a * layer.width, across.e * layer.height)))
    turned = max(abs(across.b) * layer.height, abs(across.d) * layer.width) > PART
    pixel = (max(1, across.a), max(1, across.e))
    right, bottom = place.left + place.width - grid.width, place.top + place.height - grid.height
    apart = max(abs(place.left), abs(right)) > pixel[0] or max(abs(place.top), abs(bottom)) > pixel[1]
    if turned or apart:
        raise DataError(
            f"{layer.asset.href}: does not cover the same ground as {grid.asset.href}: it spans columns "
            f"{place.left:.1f} to {place.left + place.width:.1f} and rows {place.top:.1f} to "
            f"{place.top + place.height:.1f} of its {grid.width} x {grid.height} pixels"
        )
    return _Place(*(round(value, 6) for value in place))


def _common_type(layers: Sequence[_Layer]) -> str:
    """Return the smallest type for all bands; float32 if they have none in common that can be mapped."""
    found = str(np.result_type(*(dtype for layer in layers for dtype in layer.dtypes)))
    return found if found in PIXEL_DTYPES else "float32"


def _add_band(
    root: ET.Element, layer: _Layer, band: int, place: _Place, dtype: str, block: tuple[int, int]
) -> ET.Element:
    element = ET.SubElement(
        root,
        "VRTRasterBand",
        dataType=GDAL_TYPES[dtype],
        band=str(len(root.findall("VRTRasterBand")) + 1),
        blockXSize=str(block[1]),
        blockYSize=str(block[0]),
    )
    nodata, color = layer.nodata[band - 1], layer.colors[band - 1]
    if nodata is not None:
        _add(element, "NoDataValue", repr(nodata))
    if layer.offsets[band - 1] != 0:
        _add(element, "Offset", repr(layer.offsets[band - 1]))
    if layer.scales[band - 1] != 1:
        _add(element, "Scale", repr(layer.scales[band - 1]))
    if len(layer.dtypes) > 1:  # in a stack, the order is the user's
        names = COLOURS | {ColorInterp.alpha: "Alpha"}
        _add(element, "ColorInterp", names.get(color, "Undefined"))
    _add_source(element, layer, str(band), layer.dtypes[band - 1], place)
    return element


def _add_mask(parent: ET.Element, layer: _Layer, place: _Place) -> None:
    band = ET.SubElement(ET.SubElement(parent, "MaskBand"), "VRTRasterBand", dataType="Byte")
    _add_source(band, layer, "mask,1", "uint8", place)


def _add_source(parent: ET.Element, layer: _Layer, band: str, dtype: str, place: _Place) -> None:
    source = ET.SubElement(parent, "SimpleSource", resampling="nearest")
    ET.SubElement(source, "SourceFilename", relativeToVRT="0").text = gdal_path(layer.asset.href)
    _add(source, "SourceBand", band)
    ET.SubElement(
        source,
        "SourceProperties",
        RasterXSize=str(layer.width),
        RasterYSize=str(layer.height),
        DataType=GDAL_TYPES[dtype],
        BlockXSize=str(layer.block[1]),
        BlockYSize=str(layer.block[0]),
    )
    _add_rectangle(source, "SrcRect", _Place(0, 0, layer.width, layer.height))
    _add_rectangle(source, "DstRect", place)


def _add_rectangle(parent: ET.Element, tag: str, place: _Place) -> None:
    numbers = (f"{value:.15g}" for value in place)
    ET.SubElement(parent, tag, dict(zip(("xOff", "yOff", "xSize", "ySize"), numbers, strict=True)))


def _add_gcps(root: ET.Element, layer: _Layer) -> None:
    points, crs = layer.gcps
    if not points:
        return
    listed = ET.SubElement(root, "GCPList", Projection=crs.to_wkt() if crs else "")
    for number, point in enumerate(points, 1):
        place = {"Pixel": point.col, "Line": point.row, "X": point.x, "Y": point.y, "Z": point.z or 0.0}
        about = {name: repr(float(value)) for name, value in place.items()}
        ET.SubElement(listed, "GCP", {"Id": str(number)} | about)


def _add(parent: ET.Element, tag: str, text: str) -> None:
    ET.SubElement(parent, tag).text = text


def gdal_path(href: str) -> str:
    """Return the name by which GDAL itself opens a path or address, from any folder."""
    scheme, separator, rest = href.partition("://")
    if separator and scheme in VSI:
        return f"{VSI[scheme]}{'://' if scheme.startswith('http') else '/'}{rest}"
    return href if is_remote(href) else str(Path(href).absolute())
