"""The figure and the page of one image show the weights with which the models attend."""

import base64
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from playwright.sync_api import Page, sync_playwright
from torch import Tensor

from ccsegformer.errors import DataError
from ccsegformer.models.attention_weights import AttentionApplication, cross_weights
from ccsegformer.report import attention_page
from ccsegformer.report.attention_figure import attention_figure, write_figure
from ccsegformer.report.attention_maps import attend_image, panels_at, peak_of
from ccsegformer.report.attention_page import render_attention
from tests.models.test_modeling import shake, tiny

SIZE = (96, 140)
Models = dict[str, list[AttentionApplication]]


@pytest.fixture(scope="module")
def image() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (3, *SIZE), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def models(image: Tensor) -> Models:
    found = {}
    for name, overrides in {
        "crosses": {"attention": "criss_cross", "depths": (2, 2, 1, 1), "recurrence": 1},
        "mixed": {"attention": ["efficient", "criss_cross", "none", "efficient"], "recurrence": 2},
    }.items():
        model = tiny(**overrides).eval()
        shake(model, 0.3)
        found[name] = attend_image(model, image)
    return found


def test_panels_are_the_applications_and_then_their_compositions(models: Models) -> None:
    crosses, mixed = models["crosses"], models["mixed"]
    titles = {
        (name, stage): [panel.title for panel in panels_at(own, stage, (50, 70), SIZE)]
        for name, own in (("crosses", crosses), ("mixed", mixed))
        for stage in range(4)
    }
    assert titles["crosses", 0] == ["block 1", "block 2", "blocks 1 and 2"]
    assert titles["mixed", 1] == [
        "block 1, application 1",
        "block 1, application 2",
        "block 1, application 1 and 2",
    ]
    assert titles["crosses", 2] == ["block 1"] and titles["mixed", 2] == []
    first = panels_at(crosses, 0, (50, 70), SIZE)[0]
    assert first.grid == (24, 35) and first.position == (12, 17)
    row, column = cross_weights(crosses[0], (12, 17))
    assert first.row is not None and first.column is not None
    np.testing.assert_array_equal(first.row, row)
    np.testing.assert_array_equal(first.column, column)
    reduced = panels_at(mixed, 0, (50, 70), SIZE)[0]
    assert reduced.weights is not None and reduced.weights.shape == (1, 3, 4) and reduced.ratio == 8


def test_an_image_that_does_not_suit_the_model_is_refused(image: Tensor) -> None:
    model = tiny().eval()
    for wrong, message in (
        (image[:2], "scene: 2 bands for a model of 3"),
        (image.float(), "scene: float32 values for a model of 8-bit colours"),
        (image[:, :31], "scene: 140 x 31 pixels; each side must have at least 32"),
        (
            torch.zeros(3, 1, 1, dtype=torch.uint8).expand(3, 6001, 6000),
            "scene: 6000 x 6001 is 36.0 megapixels",
        ),
    ):
        with pytest.raises(DataError, match=re.escape(message)):
            attend_image(model, wrong, "scene")


def test_the_figure_draws_the_weights_where_they_are(models: Models, image: Tensor) -> None:
    figure = attention_figure(models, image, (50, 70))
    drawn = [axis for axis in figure.axes if axis.get_title(loc="left")]
    assert len(drawn) == 3 + 3 + 1 + 1 + (1 + 3 + 1)
    axis = drawn[0]
    assert axis.get_title(loc="left") == "block 1, criss-cross"
    panel = panels_at(models["crosses"], 0, (50, 70), SIZE)[0]
    assert panel.row is not None and panel.column is not None
    _, column, row = axis.images  # above the picture
    assert row.get_array().shape == (1, 35, 4) and column.get_array().shape == (24, 1, 4)
    left, right, bottom, top = row.get_extent()
    assert (left, right) == (0, 140) and top < 50 < bottom
    peak = peak_of(panel.row[0], np.delete(panel.column[0], 12))
    expected = np.minimum(1, 1.1 * np.sqrt(panel.row[0] / peak))
    np.testing.assert_allclose(row.get_array()[0, :, 3], expected, rtol=1e-6)
    assert column.get_array()[12, 0, 3] == row.get_array()[0, 17, 3], "the position has one weight"
    reduced = next(axis for axis in drawn if axis.get_title(loc="left") == "block 1, efficient")
    assert reduced.images[1].get_extent() == [0, 140 * 32 / 35, 96, 0], "columns in no cell are left bare"


def test_a_stage_is_drawn_head_by_head(models: Models, image: Tensor) -> None:
    figure = attention_figure({"crosses": models["crosses"]}, image, (0, 0), stage=1)
    assert [axis.get_title(loc="left") for axis in figure.axes if axis.get_title(loc="left")] == [
        f"{panel}, head {head}"
        for panel in ("block 1, criss-cross", "block 2, criss-cross", "blocks 1 and 2, composed")
        for head in (1, 2)
    ]
    with pytest.raises(DataError, match="mixed: no attention to show in stage 3"):
        attention_figure({"mixed": models["mixed"]}, image, (0, 0), stage=2)


def test_the_same_figure_has_the_same_bytes(models: Models, image: Tensor, tmp_path: Path) -> None:
    for suffix, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        written = []
        for name in ("a", "b"):
            path = tmp_path / f"{name}.{suffix}"
            write_figure(path, attention_figure({"crosses": models["crosses"]}, image, (9, 9)))
            written.append(path.read_bytes())
        assert written[0] == written[1] and written[0].startswith(start)
    assert "svg.hashsalt" not in mpl.rcParams or mpl.rcParams["svg.hashsalt"] is None


def stored(page: str) -> dict[str, Any]:
    """Return the data of a page, with its weights decoded."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data = json.loads(found[1])
    for name, dtype in (("codes", np.uint8), ("maxima", "<f4")):
        data[name] = np.frombuffer(zlib.decompress(base64.b64decode(data[name])), dtype)
    return data


def test_the_page_holds_each_stored_pixels_weights(models: Models, image: Tensor) -> None:
    data = stored(render_attention(models, image, name="scene.png"))
    assert data["steps"] == [11, 16] and data["size"] == list(SIZE)
    codes, maxima = iter(data["codes"]), iter(data["maxima"])
    for model in data["models"]:
        for stage, panels in enumerate(model["stages"]):
            for number, outline in enumerate(panels):
                for i, j in np.ndindex(11, 16):
                    pixel = int((i + 0.5) * 96 // 11), int((j + 0.5) * 140 // 16)
                    panel = panels_at(models[model["name"]], stage, pixel, SIZE)[number]
                    arrays = [panel.weights] if panel.row is None else [panel.row, panel.column]
                    flat = [array.reshape(panel.heads, -1) for array in arrays if array is not None]
                    exact = np.concatenate(flat, axis=1)
                    exact = exact.mean(axis=0, keepdims=True) if panel.composed else exact
                    for weights in exact:
                        largest = next(maxima)
                        read = [next(codes) for _ in range(sum(outline["lengths"]))]
                        assert (
                            np.abs(largest * (np.array(read) / 255.0) ** 2 - weights).max() <= 0.004 * largest
                        )
    assert next(codes, None) is None and next(maxima, None) is None


def test_large_compositions_are_summed_over_squares(
    models: Models, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_page, "COMPOSED_SIDE", 12)
    composed = panels_at(models["crosses"], 0, (50, 70), SIZE)[2]
    summed = attention_page._summed(composed)
    assert summed.weights is not None and composed.weights is not None
    assert summed.ratio == 3 and summed.weights.shape == (1, 8, 12)
    assert summed.title == "blocks 1 and 2, sums over 3 × 3 positions"
    block = composed.weights.mean(axis=0)[21:24, 33:36].sum()
    np.testing.assert_allclose(summed.weights[0, 7, 11], block, rtol=1e-5)
    np.testing.assert_allclose(summed.weights.sum(), 1, rtol=1e-5)


def test_deep_models_have_fewer_stored_pixels(
    models: Models, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_page, "MAX_BYTES", 100_000)
    data = stored(render_attention({"crosses": models["crosses"]}, image, name="scene.png"))
    assert max(data["steps"]) < 16 and 50_000 < len(data["codes"]) <= 100_000


def test_a_page_escapes_names(models: Models, image: Tensor) -> None:
    page = render_attention(
        {"</script><b>": models["crosses"]}, image, name="<i>.png", command=["ccsegformer", "<u>"]
    )
    assert not {"</script><b>", "<i>", "<u>"} & set(re.findall(r"</script><b>|<[iu]>", page))
    with pytest.raises(DataError, match="plain: no attention to show"):
        render_attention({"plain": []}, image, name="scene.png")


@pytest.fixture
def opened(models: Models, image: Tensor, tmp_path: Path) -> Iterator[tuple[Page, str]]:
    """Open the page in a browser; the test fails if a script does, or if it asks for anything else."""
    path = tmp_path / "page.html"
    path.write_text(render_attention(models, image, name="scene.png"), encoding="utf-8")
    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.on("request", lambda request: None if is_local(request.url) else problems.append(request.url))
        yield page, path.as_uri()
        browser.close()
    assert not problems


def is_local(address: str) -> bool:
    return address.startswith(("file:", "data:", "blob:"))


def test_the_page_shows_what_is_clicked(opened: tuple[Page, str], models: Models) -> None:
    page, address = opened
    page.goto(f"{address}#x=70&y=50&stage=1&head=1")
    canvas = page.locator("section", has_text="crosses").locator("canvas").first
    canvas.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390, "the phone scrolls sideways"
    assert page.locator(".attention-view canvas").count() == 4
    assert page.get_by_role("button", name="Stage 1").get_attribute("aria-pressed") == "true"

    # Position (12, 18) of the stage's 24 x 35 grid. In its row, at column 5, the pointer reads its weight.
    box = canvas.bounding_box()
    assert box is not None
    scale = box["width"] / (140 + 1.25 * 0.16 * 96)
    canvas.hover(position={"x": 22.5 * scale, "y": (1.25 * 0.16 * 96 + 49.5) * scale})
    pixel = (int(5.5 * 96 // 11), int(8.5 * 140 // 16))
    panel = panels_at(models["crosses"], 0, pixel, SIZE)[0]
    assert panel.row is not None
    said = page.locator(".readout").inner_text()
    found = re.fullmatch(r"\(22, \d+\): weight ([\d.e-]+), ([\d.e-]+) times uniform", said)
    assert found, said
    assert float(found[1]) == pytest.approx(panel.row[0, 5], abs=0.005 * float(panel.row.max()))
    assert float(found[2]) == pytest.approx(58 * panel.row[0, 5], rel=0.1)

    before = canvas.screenshot()
    canvas.click(position={"x": 100 * scale, "y": (1.25 * 0.16 * 96 + 80) * scale})
    page.wait_for_function("location.hash.startsWith('#x=100&y=')")
    assert canvas.screenshot() != before
    page.get_by_role("button", name="Stage 3").click()
    page.wait_for_function("location.hash.includes('stage=3')")
    assert page.get_by_text("No attention in this stage.").is_visible()
    page.get_by_label("Heads").select_option(label="Head 2 of 3")
    assert page.url.endswith("stage=3&head=2")
    page.locator("canvas").first.press("ArrowLeft")
    page.wait_for_function("location.hash.startsWith('#x=91&')")


def test_the_page_saves_a_picture(opened: tuple[Page, str], tmp_path: Path) -> None:
    page, address = opened
    page.goto(f"{address}#x=70&y=50&stage=2")
    page.locator("canvas").first.wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as PNG").click()
    assert download.value.suggested_filename == "attention_74_48_stage2.png"
    content = download.value.path().read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 20_000
