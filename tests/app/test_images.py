"""Which files are taken: bytes and pixels, names, paths, and 1,000 damaged ones."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from fastapi.testclient import TestClient
from PIL import Image

from ccsegformer.app import images
from ccsegformer.app.workspace import Workspace
from tests.labelling.test_scene import write_scene


def encoded(format: str = "PNG", width: int = 24, height: int = 16) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that declares many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def uploads(workspace: Workspace) -> list[Path]:
    return list((workspace.folder / "images").iterdir())


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_photographs_are_taken(client: TestClient, format: str) -> None:
    taken = client.post("/api/label/images?name=a.b", content=encoded(format))
    assert taken.status_code == 201, taken.text
    found = taken.json()
    assert (found["kind"], found["name"], found["width"], found["height"]) == ("photograph", "a.b", 24, 16)
    shown = client.get(f"/api/label/images/{found['key']}/picture.jpg").content
    assert Image.open(io.BytesIO(shown)).size == (24, 16)


def test_scenes_are_taken(client: TestClient, root: Path) -> None:
    found = client.post("/api/label/images?name=s.tif", content=(root / "scene.tif").read_bytes()).json()
    assert (found["kind"], found["width"], found["grid"]["kind"]) == ("scene", 230, "mercator")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "x.png: not an image; choose a PNG, JPEG"),
        (b"MZ" + bytes(100), "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not an image"),
        (b"<VRTDataset rasterXSize='1' rasterYSize='1'/>", "not an image"),
        (encoded()[:60], "damaged"),
        (bomb(10_000, 10_000), "100 megapixels, and a photograph may have 64"),
        (bomb(20_000, 20_000), "more than 64 megapixels"),
        (bomb(2**31 - 1, 2**31 - 1), "megapixels"),
    ],
)
def test_others_are_refused_and_removed(
    client: TestClient, workspace: Workspace, content: bytes, reason: str
) -> None:
    refused = client.post("/api/label/images?name=x.png", content=content)
    assert refused.status_code == 422
    assert reason in refused.json()["detail"] and str(workspace.folder) not in refused.text
    assert not uploads(workspace)


def test_a_bomb_is_refused_before_it_is_decoded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "read_image", lambda *_: pytest.fail("decoded"))
    assert client.post("/api/label/images", content=bomb(9_000, 9_000)).status_code == 422


def test_a_scene_that_declares_too_many_pixels_is_refused(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scene(tmp_path / "s.tif")
    monkeypatch.setattr(images, "MAX_SCENE_PIXELS", 230 * 150 - 1)
    refused = client.post("/api/label/images?name=s.tif", content=(tmp_path / "s.tif").read_bytes())
    assert "s.tif: 230 x 150 pixels, and an uploaded scene may have" in refused.json()["detail"]
    sparse = tmp_path / "sparse.tif"
    profile = {"driver": "GTiff", "width": 200_000, "height": 200_000, "count": 3, "dtype": "uint8"}
    with rasterio.open(
        sparse, "w", **profile, SPARSE_OK=True, tiled=True, transform=rasterio.Affine(1, 0, 5, 0, -1, 5)
    ):
        pass
    refused = client.post("/api/label/images?name=s.tif", content=sparse.read_bytes())
    assert refused.status_code == 422 and "200000 x 200000 pixels" in refused.json()["detail"]


@pytest.mark.parametrize("announced", [True, False])
def test_bytes_are_bounded(
    client: TestClient, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, announced: bool
) -> None:
    monkeypatch.setattr(images, "MAX_PHOTOGRAPH_BYTES", 1000)
    monkeypatch.setattr(images, "MAX_SCENE_BYTES", 5000 if announced else 10**6)
    content = encoded("BMP", 80, 80)
    sent = content if announced else iter([content[:20], content[20:2000], content[2000:]])
    refused = client.post("/api/label/images", content=sent)
    assert refused.status_code == 422 and "too large" in refused.json()["detail"]
    assert not uploads(workspace)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("../../../etc/passwd", "passwd"),
        ("..", ".."),
        ("C:\\photos\\a.png", "a.png"),
        ("/", "image"),
        ("a\x00\nb.png", "ab.png"),
        ("x" * 5000, "x" * 200),
    ],
)
def test_names_are_shown_and_never_paths(
    client: TestClient, workspace: Workspace, given: str, shown: str
) -> None:
    found = client.post("/api/label/images", params={"name": given}, content=encoded()).json()
    assert found["name"] == shown
    assert [path.name for path in uploads(workspace)] == [found["key"]]


def test_old_images_are_removed(client: TestClient, workspace: Workspace) -> None:
    keys = [
        client.post("/api/label/images", content=encoded()).json()["key"]
        for _ in range(images.KEPT_IMAGES + 2)
    ]
    assert {path.name for path in uploads(workspace)} == set(keys[2:])
    assert client.delete(f"/api/label/images/{keys[-1]}").status_code == 204
    assert len(uploads(workspace)) == images.KEPT_IMAGES - 1
    gone = client.post("/api/label/jobs", json={"image": keys[0], "models": [0]})
    assert gone.status_code == 422 and "no longer kept" in gone.json()["detail"]


def test_the_folder_is_listed_and_opened(client: TestClient, root: Path) -> None:
    listed = client.get("/api/label/folder?path=.").json()
    assert listed == {"folder": ".", "folders": ["below"], "files": ["scene.tif"]}
    assert client.get("/api/label/folder?path=below").json()["files"] == ["other.tif"]
    opened = client.post("/api/label/paths", json={"path": "below/other.tif"}).json()
    assert (opened["kind"], opened["name"]) == ("scene", "other.tif")
    client.delete(f"/api/label/images/{opened['key']}")
    assert (root / "below" / "other.tif").is_file()


@pytest.mark.parametrize(
    "path",
    [
        "../outside0/secret.tif",
        "/etc/passwd",
        "link.tif",
        "links/secret.tif",
        "below/../../root0/../outside0/secret.tif",
        "/vsicurl/http://127.0.0.1/a.tif",
        "http://127.0.0.1/a.tif",
        "a\x00b",
        "x" * 300,
        "nowhere.tif",
    ],
)
def test_no_path_leads_out_of_the_folder(client: TestClient, path: str) -> None:
    for refused in (
        client.post("/api/label/paths", json={"path": path}),
        client.get("/api/label/folder", params={"path": path}),
    ):
        assert refused.status_code == 422
        assert "no such file in the folder" in refused.json()["detail"]


def test_a_scene_whose_files_lie_elsewhere_is_refused(client: TestClient, root: Path, tmp_path: Path) -> None:
    other = root / "below" / "masked.tif"
    write_scene(other)
    secret = tmp_path / "masked.tif.msk"
    write_scene(secret, bands=1)
    link = other.with_name("masked.tif.msk")
    link.symlink_to(secret)
    try:
        refused = client.post("/api/label/paths", json={"path": "below/masked.tif"})
        assert refused.status_code == 422 and "needs a file that lies elsewhere" in refused.json()["detail"]
    finally:
        other.unlink()
        link.unlink()


def damaged(seed: int, originals: dict[str, bytes]) -> bytes:
    """Cut, flip, overwrite or mislabel one of the originals."""
    generator = np.random.default_rng(seed)
    content = bytearray(originals[list(originals)[seed % len(originals)]])
    way = generator.integers(5)
    if way == 0:
        return bytes(content[: generator.integers(len(content))])
    if way == 1:
        for place in generator.integers(len(content), size=generator.integers(1, 40)):
            content[place] ^= 1 << generator.integers(8)
    elif way == 2:  # the header
        for place in generator.integers(min(200, len(content)), size=generator.integers(1, 12)):
            content[place] = generator.integers(256)
    elif way == 3:  # huge numbers
        place = generator.integers(4, min(120, len(content) - 4))
        content[place : place + 4] = bytes([255] * 4) if generator.integers(2) else b"\x7f\xff\xff\xff"
    else:  # another format's first bytes
        magic = list(images.FORMATS)[generator.integers(len(images.FORMATS))]
        content[: len(magic)] = magic
    return bytes(content)


def test_a_thousand_damaged_uploads(client: TestClient, workspace: Workspace, root: Path) -> None:
    originals = {
        "png": encoded("PNG", 64, 48),
        "jpeg": encoded("JPEG", 64, 48),
        "tiff": encoded("TIFF", 64, 48),
        "scene": (root / "scene.tif").read_bytes()[:40_000],
        "webp": encoded("WEBP", 64, 48),
    }
    refused = 0
    for seed in range(1000):
        answer = client.post("/api/label/images?name=photo.jpg", content=damaged(seed, originals))
        assert answer.status_code in (201, 422), (seed, answer.text)
        if answer.status_code == 422:
            refused += 1
            detail = answer.json()["detail"]
            assert detail and "\n" not in detail and len(detail) < 400, (seed, detail)
            assert str(workspace.folder) not in detail, (seed, detail)
        elif answer.json()["kind"] == "scene":  # damage that the header does not show
            image = answer.json()
            drawn = client.get(f"/api/label/images/{image['key']}/0/0/0.png")
            assert drawn.status_code in (200, 422), (seed, drawn.text)
    assert 400 < refused < 1000
    assert len(uploads(workspace)) <= images.KEPT_IMAGES
    assert client.post("/api/label/images?name=a.png", content=encoded()).status_code == 201
