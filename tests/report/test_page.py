"""The page of a comparison is complete, self-contained and safe."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from ccsegformer.report.figures import class_scores, image_differences, image_scores, loss_curves
from ccsegformer.report.page import Example, render_page

VOID = {"meta", "img", "br", "link", "input", "hr", "use", "path", "rect", "image"}


class Outline(HTMLParser):
    """Collect tags and addresses, and check that tags are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID and tag != "li":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID and tag != "li":
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_no_resources(results, examples):
    outline = Outline(render_page(results, examples))
    assert outline.open == []
    tags = {tag for tag, _ in outline.tags}
    assert not tags & {"script", "link", "iframe", "object"}
    addresses = [
        value
        for _, attributes in outline.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "action")
    ]
    assert addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert not re.search(r"url\((?!#)|@import", render_page(results, examples))


def test_ids_are_unique_and_images_described(results, examples):
    outline = Outline(render_page(results, examples))
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    images = [attributes for tag, attributes in outline.tags if tag == "img"]
    assert len(images) == 5  # image, truth and three predictions
    assert all(image["alt"] for image in images)
    charts = [attributes for tag, attributes in outline.tags if tag == "svg"]
    assert [chart["role"] for chart in charts] == ["img"] * 4
    assert all(chart["aria-label"] for chart in charts)


def test_the_page_has_the_numbers_of_the_results(results, examples):
    page = render_page(results, examples)
    for model in results["models"].values():
        assert f"{model['mean_iou']:.3f}" in page
        assert f"{model['per_class']['rye']['iou']:.3f}" in page
        assert f"{model['gflops']:.2f}" in page
        assert model["runs"][0]["folder"] in page
    for words in (results["verdict"]["headline"], results["command"], results["machine"]["processor"]):
        assert words in page
    assert "steps: 600" in page  # the recipe


def test_prediction_images_have_the_colours_of_the_classes(results, examples):
    page = render_page(results, examples)
    encoded = re.findall(r"data:image/png;base64,([\w+/=]+)", page)
    truth = Image.open(io.BytesIO(base64.b64decode(encoded[0]))).convert("RGB")
    assert truth.size == (64, 64)
    assert truth.getpixel((40, 1)) == (0, 0, 0)  # ignored
    assert list(truth.getpixel((40, 40))) == results["data"]["palette"][examples[0].truth[40, 40]]


def test_hostile_names_are_text(make_results, make_examples):
    hostile = "<script>alert('$x$ & \"y\"')</script>"
    results = make_results(classes=[hostile, "b"])
    results["command"] = "echo '<b>'"
    results["data"]["name"] = '"><img src=x>'
    page = render_page(results, make_examples(results))
    assert "<script" not in page
    assert "<b>'" not in page
    assert "<img src=x>" not in page
    assert "&lt;script&gt;" in page
    assert Outline(page).open == []


def test_missing_values_are_dashes(results, examples):
    for model in results["models"].values():
        model["per_class"]["rye"] = {"iou": None, "accuracy": None}
        model["image_miou"][3] = None
    example = Example(**{**vars(examples[0]), "scores": dict.fromkeys(results["models"])})
    page = render_page(results, [example])
    assert not re.search(r"[\s>:\"]nan\b", page, flags=re.IGNORECASE)
    assert re.search(r"rye</th><td>–</td><td>–</td>", page)


def test_few_images_have_no_interval(make_results, make_examples):
    results = make_results(images=4)
    page = render_page(results, make_examples(results))
    assert "no interval" in page
    assert results["verdict"]["headline"].startswith("Too few")
    assert results["verdict"]["headline"] in page


def test_seeds_are_reported(make_results, make_examples):
    results = make_results(seeds=3)
    page = render_page(results, make_examples(results))
    assert "mean of 3 seeds" in page
    assert "criss_cross-seed2" in page


def test_a_page_without_examples(results):
    assert 'id="examples"' not in render_page(results, [])


def test_results_hold_nothing_that_json_cannot(results):
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_charts_take_their_colours_from_the_page(results):
    curves = {name: [run["loss"] for run in model["runs"]] for name, model in results["models"].items()}
    chart = loss_curves(curves, "Loss")
    assert {"var(--criss-cross)", "var(--efficient)", "var(--none)"} <= set(
        re.findall(r"var\(--[\w-]+\)", chart)
    )
    assert "#0" not in re.sub(r'"#[mp][0-9a-f]+"', "", chart)
    assert "DejaVu" not in chart
    assert chart == loss_curves(curves, "Loss")


@pytest.mark.parametrize(
    "chart",
    [
        lambda: loss_curves({"none": [[]], "efficient": [[(1, 0.0)]]}, "loss of no or one step"),
        lambda: class_scores({"none": {"a": None}, "efficient": {"a": None}}, "absent class"),
        lambda: image_scores({"none": [None], "efficient": [0.5]}, {"none": "x", "efficient": "y"}, "scores"),
        lambda: image_differences("none", "efficient", {"none": [None], "efficient": [0.5]}, "differences"),
        lambda: image_differences("none", "efficient", {"none": [0.5], "efficient": [0.5]}, "differences"),
    ],
)
def test_charts_of_almost_no_data(chart):
    assert chart().startswith("<svg")
