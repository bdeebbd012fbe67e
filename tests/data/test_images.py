import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from torchvision import tv_tensors

from ccsegformer.data.images import read_image, read_mask
from ccsegformer.errors import DataError

COLORS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GRAY = COLORS[..., 0]


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def write_png(path: Path, width: int, height: int, bits: int, color_type: int, rows: bytes) -> Path:
    """Write a PNG of any bit depth; Pillow writes only some."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def hwc(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png", COLORS))
    assert isinstance(image, tv_tensors.Image)
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(hwc(image), COLORS)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_becomes_three_equal_channels(tmp_path: Path, mode: str) -> None:
    pixels = GRAY.astype(np.uint16) * 257 if mode == "I;16" else GRAY
    path = save(tmp_path / "a.png", pixels, None if mode == "I;16" else mode)
    np.testing.assert_array_equal(hwc(read_image(path)), np.repeat(GRAY[..., None], 3, axis=2))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path, suffix: str) -> None:
    wide = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    image = read_image(save(tmp_path / f"a{suffix}", wide))
    assert image[0].tolist() == [[0, 0, 1, 128, 255]]


def test_sixteen_bit_colour_keeps_the_upper_eight(tmp_path: Path) -> None:
    rows = b"\0" + struct.pack(">HHH", 65535, 0x12FF, 0x0080)
    image = read_image(write_png(tmp_path / "a.png", 1, 1, 16, 2, rows))
    assert image.flatten().tolist() == [255, 0x12, 0]


def test_transparency_is_dropped_and_the_colours_kept(tmp_path: Path) -> None:
    alpha = np.full((5, 7, 1), 0, dtype=np.uint8)
    path = save(tmp_path / "a.png", np.concatenate([COLORS, alpha], axis=2))
    np.testing.assert_array_equal(hwc(read_image(path)), COLORS)


def test_a_palette_with_transparency_becomes_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), mode=None).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "a.png", transparency=b"\x00\x80\xff")
    assert hwc(read_image(tmp_path / "a.png")).tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_other_colour_spaces_become_rgb(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "a.tif", COLORS, mode)
    np.testing.assert_allclose(hwc(read_image(path)).astype(int), COLORS, atol=3)


def test_a_bilevel_image_is_black_and_white(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png", GRAY > 127))
    np.testing.assert_array_equal(hwc(image)[..., 1], np.where(GRAY > 127, 255, 0))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation_turns_image_and_mask_alike(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = {3: 2, 6: 3, 8: 1}[orientation]
    image = read_image(save(tmp_path / "a.png", COLORS, exif=exif))
    mask = read_mask(save(tmp_path / "b.png", GRAY, exif=exif))
    np.testing.assert_array_equal(hwc(image), np.rot90(COLORS, turns))
    np.testing.assert_array_equal(mask, np.rot90(GRAY, turns))


def test_a_hundred_megapixels_load(tmp_path: Path) -> None:
    Image.new("1", (10_000, 10_000), 1).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 10_000, 10_000)
    assert image[:, -1, -1].tolist() == [255, 255, 255]


def test_too_many_pixels_are_one_line(tmp_path: Path) -> None:
    path = write_png(tmp_path / "bomb.png", 60_000, 60_000, 1, 0, b"")
    with pytest.raises(DataError, match=r"bomb\.png: more than 178 megapixels; cut it") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_one_pixel_wide(tmp_path: Path) -> None:
    assert read_image(save(tmp_path / "a.png", COLORS[:, :1])).shape == (3, 5, 1)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in (".png", ".jpg", ".tif", ".webp"):
        whole = save(tmp_path / f"whole{suffix}", noise).read_bytes()
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError) as caught:
            read_image(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_other_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image")
    (tmp_path / "b.jpg").write_bytes(b"")
    (tmp_path / "c.jpg").mkdir()
    for name, message in {
        "a.jpg": "not an image that can be read",
        "b.jpg": "not an image that can be read",
        "c.jpg": "Is a directory",
        "d.jpg": "no such file",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            read_image(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")


def test_numbers_without_a_known_range_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", GRAY.astype(np.float32) / 255)
    with pytest.raises(DataError, match=r"a\.tif: an image of floating-point numbers; convert"):
        read_image(path)
    path = save(tmp_path / "b.tif", GRAY.astype(np.int32) + 65536)
    with pytest.raises(DataError, match=r"b\.tif: a 32-bit image; convert"):
        read_image(path)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16])
def test_masks_hold_the_stored_ids(tmp_path: Path, dtype: type) -> None:
    ids = np.array([[0, 1], [254, 700]], dtype=np.uint16).astype(dtype)
    mask = read_mask(save(tmp_path / "a.png", ids))
    assert isinstance(mask, tv_tensors.Mask)
    assert mask.dtype == (torch.int32 if dtype is np.uint16 else torch.uint8)
    assert mask.tolist() == ids.astype(int).tolist()


def test_palette_masks_give_indices(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 100, 50, 1, 2, 3])
    image.putdata([1, 0])
    image.save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").tolist() == [[1, 0]]


@pytest.mark.parametrize(("bits", "row"), [(2, 0b00_01_10_11), (4, 0x2F)])
def test_masks_of_few_bits_keep_their_ids(tmp_path: Path, bits: int, row: int) -> None:
    path = write_png(tmp_path / "a.png", 8 // bits, 1, bits, 0, bytes([0, row]))
    assert read_mask(path).tolist() == [[0, 1, 2, 3] if bits == 2 else [2, 15]]


@pytest.mark.parametrize("mode", ["RGB", "LA", "RGBA"])
def test_colour_masks_are_refused(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "a.png", COLORS, mode)
    with pytest.raises(DataError, match=rf"a\.png: a mask holds one class id .* mode {mode};"):
        read_mask(path)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("bands", [3, 4])
@pytest.mark.parametrize("compress", ["none", "lzw", "deflate"])
def test_colours_of_sixteen_bits_in_tiffs(tmp_path: Path, interleave: str, bands: int, compress: str) -> None:
    wide = np.random.default_rng(0).integers(0, 65536, (bands, 5, 7)).astype(np.uint16)
    profile = {"driver": "GTiff", "width": 7, "height": 5, "count": bands, "dtype": "uint16"}
    profile |= {"interleave": interleave, "compress": compress, "photometric": "RGB"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(tmp_path / "a.tif", "w", **profile) as target:
            target.write(wide)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").numpy(), wide[:3] >> 8)


def test_documents_and_icons_are_no_photographs(tmp_path: Path) -> None:
    for suffix in (".pdf", ".eps", ".ico"):
        path = save(tmp_path / f"a{suffix}", np.zeros((16, 16, 3), np.uint8))
        with pytest.raises(DataError, match=rf"a\{suffix}: .*(not a format of photographs|not an image)"):
            read_image(path)


def test_colours_of_sixteen_bits_are_turned_upright(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype("<u2")
    start = 8 + 2 + 10 * 12 + 4  # behind the header and a directory of ten entries
    tags = {256: 7, 257: 5, 259: 1, 262: 2, 273: start + 6, 274: 6, 277: 3, 278: 5, 279: wide.nbytes}
    entries = [(258, 3, 3, start), *((tag, 4, 1, value) for tag, value in tags.items())]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    header = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)
    (tmp_path / "a.tif").write_bytes(header + struct.pack("<3H", 16, 16, 16) + wide.tobytes())
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(hwc(image), np.rot90(wide >> 8, -1))
