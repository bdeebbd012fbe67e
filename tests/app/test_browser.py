"""The page in Chromium: desktop and phone, light and dark."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from ccsegformer.app.workspace import OpenedModel, Workspace
from tests.app.conftest import served_app
from tests.app.test_images import encoded
from tests.labelling.test_scene import write_scene

SCREENS = {
    "desktop-light": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"},
    "phone-dark": {
        "viewport": {"width": 390, "height": 844},
        "color_scheme": "dark",
        "has_touch": True,
        "is_mobile": True,
    },
}
PATIENCE = 30_000  # milliseconds until a test gives up

OpenPage = Callable[[str], Page]


@pytest.fixture
def address(workspace: Workspace) -> Iterator[str]:
    with served_app(workspace) as found:
        yield found


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[OpenPage]:
    """Open the page on a screen. Errors in it, and requests to other servers, fail the test."""
    contexts, problems = [], []

    def open_page(screen: str) -> Page:
        context = browser.new_context(**SCREENS[screen])  # type: ignore[arg-type]
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: _is_failure(said) and problems.append(said.text))
        page.on("request", lambda request: _is_foreign(request.url, address) and problems.append(request.url))
        page.goto(address)
        expect(page.get_by_role("heading", name="Label an image")).to_be_visible()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


def _is_failure(said: ConsoleMessage) -> bool:
    return said.type == "error" and "status of 422" not in said.text  # refused files


def _is_foreign(url: str, address: str) -> bool:
    return not url.startswith((address, "blob:", "data:"))


def drop_file(page: Page, name: str, content: bytes) -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "", "buffer": content})


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.parametrize("screen", SCREENS)
def test_a_photograph_is_labelled_by_two_models(open_page: OpenPage, screen: str, tmp_path: Path) -> None:
    page = open_page(screen)
    assert fits(page)
    page.get_by_label("Compare with").select_option("second")
    page.get_by_role("button", name="Example 2").click()
    expect(page.get_by_text("The models agree on")).to_be_visible(timeout=PATIENCE)
    for name in ("ground", "water", "road"):
        assert page.get_by_role("row", name=name).count() <= 1
    assert page.get_by_role("row").filter(has_text="in one piece").count() == 2
    assert fits(page)

    divider = page.get_by_role("slider", name="Divider between the models")
    divider.press("ArrowLeft")
    expect(divider).to_have_attribute("aria-valuenow", "48")
    page.get_by_label("Opacity of the labels").press("End")

    viewer = page.get_by_role("group", name="Image and labels")
    viewer.press("+")
    reading = page.locator(".reading")
    expect(reading).to_contain_text("first")
    assert set(reading.inner_text().split()) & {"ground", "water", "road"}
    assert "%" in reading.inner_text()

    with page.expect_download() as download:
        page.get_by_role("link", name="Class ids").first.click()
    assert download.value.suggested_filename == "Example_2_labels.png"

    # Choosing no other model labels again, and the divider goes.
    page.get_by_label("Compare with").select_option("")
    expect(divider).to_be_hidden()
    expect(page.get_by_role("link", name="Overlay")).to_have_count(1)


def test_the_overlay_shows_the_classes(open_page: OpenPage) -> None:
    page = open_page("desktop-light")
    page.get_by_role("button", name="Example 1").click()
    expect(page.get_by_role("link", name="Overlay")).to_be_visible(timeout=PATIENCE)
    colors = page.locator(".viewer canvas").evaluate(
        """canvas => {
          const { width, height } = canvas, found = new Set();
          const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
          for (let at = 0; at < data.length; at += 4) found.add([...data.slice(at, at + 4)].join());
          return [...found];
        }"""
    )
    assert set(colors) <= {"10,20,30,255", "40,50,60,255", "70,80,90,255"} and colors


@pytest.mark.parametrize("screen", SCREENS)
def test_a_scene_is_mapped(open_page: OpenPage, screen: str, tmp_path: Path) -> None:
    page = open_page(screen)
    write_scene(tmp_path / "field.tif")
    drop_file(page, "field.tif", (tmp_path / "field.tif").read_bytes())
    expect(page.get_by_role("heading", name="field.tif")).to_be_visible()
    expect(page.locator(".viewer img").first).to_be_attached()
    assert page.get_by_label("Basemap").is_checked() is False
    page.get_by_role("button", name="Map this scene").click()
    expect(page.get_by_role("link", name="GeoPackage")).to_be_visible(timeout=PATIENCE)
    page.get_by_label("Polygons").check()
    expect(page.locator(".viewer img[src*=polygons]").first).to_be_attached()
    viewer = page.get_by_role("group", name="Image and labels")
    viewer.press("ArrowLeft")
    expect(page.locator(".reading")).to_contain_text("%")
    with page.expect_download() as download:
        page.get_by_role("link", name="GeoTIFF").click()
    assert download.value.suggested_filename == "field_map.tif"
    assert fits(page)


def test_errors_are_shown_and_the_next_image_works(open_page: OpenPage) -> None:
    page = open_page("phone-dark")
    drop_file(page, "notes.pdf", b"%PDF-1.7 no image at all")
    with_alert = page.get_by_role("alert")
    expect(with_alert).to_contain_text("notes.pdf: not an image; choose a PNG")
    drop_file(page, "half.png", encoded()[:70])
    expect(with_alert).to_contain_text("half.png: damaged")
    drop_file(page, "whole.png", encoded("PNG", 64, 48))
    expect(page.get_by_role("link", name="Overlay")).to_be_visible(timeout=PATIENCE)
    expect(with_alert).to_have_count(0)
    assert fits(page)


def test_a_job_is_cancelled(browser: Browser, opened_models: tuple[OpenedModel, ...], tmp_path: Path) -> None:
    import threading

    reached, go_on = threading.Event(), threading.Event()

    def run(pixels: torch.Tensor) -> torch.Tensor:
        reached.set()
        assert go_on.wait(PATIENCE / 1000)
        return opened_models[0].engine.run(pixels)

    model = replace(opened_models[0], engine=replace(opened_models[0].engine, run=run))
    workspace = Workspace([model], tmp_path / "temporary")
    try:
        with served_app(workspace) as address:
            page = browser.new_page()
            page.goto(address)
            drop_file(page, "a.png", encoded("PNG", 64, 48))
            assert reached.wait(PATIENCE / 1000)
            page.get_by_role("button", name="Cancel").click()
            expect(page.get_by_role("status").filter(has_text="Cancelling")).to_be_visible()
            go_on.set()
            expect(page.get_by_text("Cancelled.")).to_be_visible(timeout=PATIENCE)
            page.context.close()
    finally:
        go_on.set()
        workspace.queue.close()
    assert not [path for path in (tmp_path / "temporary" / "jobs").rglob("*") if path.is_file()]


def test_files_of_the_folder(open_page: OpenPage) -> None:
    page = open_page("desktop-light")
    page.get_by_text("Open from the folder").click()
    page.get_by_role("button", name="below/").click()
    page.get_by_role("button", name="other.tif").click()
    expect(page.get_by_role("heading", name="other.tif")).to_be_visible()


def test_the_basemap_is_the_only_request_elsewhere(browser: Browser, address: str, root: Path) -> None:
    page = browser.new_page()
    asked: list[str] = []

    def answer(route: Any) -> None:
        asked.append(route.request.url)
        route.fulfill(body=encoded("PNG", 256, 256), content_type="image/png")

    page.route(lambda url: _is_foreign(url, address), answer)
    page.goto(address)
    drop_file(page, "scene.tif", (root / "scene.tif").read_bytes())
    expect(page.locator(".viewer img").first).to_be_attached()
    assert not asked
    page.get_by_label("Basemap").check()
    expect(page.locator(".viewer img[src*=openstreetmap]").first).to_be_attached(timeout=PATIENCE)
    expect(page.get_by_role("link", name="OpenStreetMap")).to_be_visible()
    assert asked and all(url.startswith("https://tile.openstreetmap.org/") for url in asked)
    page.context.close()


@pytest.mark.parametrize("screen", SCREENS)
def test_the_keyboard_reaches_everything(open_page: OpenPage, screen: str) -> None:
    page = open_page(screen)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.get_by_role("tab", name="Label").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Attention")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="Label")).to_be_focused()
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert {"file", "Example scene (GeoTIFF)", "model-a", "model-b"} <= reached
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, input, select, a")].filter(each =>
          !each.labels?.length && !each.ariaLabel && !each.textContent.trim()).map(each => each.outerHTML)"""
    )
    assert not unnamed


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Browser, address: str, scheme: Any) -> None:
    """WCAG AA: 4.5 to 1 for text on its background."""
    page = browser.new_page(color_scheme=scheme)
    page.goto(address)
    found = page.evaluate(
        """() => {
          const style = getComputedStyle(document.documentElement);
          const level = (name) => {
            const hex = style.getPropertyValue(name).trim().slice(1).replace(/^(.)(.)(.)$/, "$1$1$2$2$3$3");
            const [r, g, b] = [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
              .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const ratio = (one, other) => {
            const [low, high] = [level(one), level(other)].sort((a, b) => a - b);
            return (high + 0.05) / (low + 0.05);
          };
          const inks = ["--ink", "--quiet", "--accent"];
          const pairs = ["--paper", "--card"].flatMap((ground) => inks.map((ink) => [ink, ground]));
          pairs.push(["--on-accent", "--accent"], ["--bad", "--bad-card"]);
          return pairs.map(([one, other]) => [one, other, ratio(one, other)]);
        }"""
    )
    assert all(ratio >= 4.5 for *_, ratio in found), found
    page.context.close()
