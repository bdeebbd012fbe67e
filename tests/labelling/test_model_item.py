"""STAC items of models (MLM): predict reads them, ours and others', and refuses what it cannot follow."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ccsegformer.data.labels import Classes
from ccsegformer.errors import CCSegformerError
from ccsegformer.labelling.loading import load_engine, open_segmenter
from ccsegformer.labelling.model_item import bands_by_name
from ccsegformer.labelling.preprocess import Preprocessing, given_preprocessing

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a pt2 file of someone else: two bands, three classes."""
    path = tmp_path_factory.mktemp("network") / "net.pt2"
    sizes = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(
        nn.Conv2d(2, 3, 1).eval(), (torch.zeros(2, 2, 64, 96),), dynamic_shapes=(sizes,)
    )
    torch.export.save(program, path)
    return path


@pytest.fixture
def item(network: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write an item of the network, changed by a function."""

    def write(change: Change = lambda content: None) -> Path:
        (tmp_path / "net.pt2").write_bytes(network.read_bytes())
        content = {
            "type": "Feature",
            "properties": {
                "mlm:name": "net",
                "mlm:input": [
                    {
                        "name": "two bands",
                        "bands": ["B04", {"name": "B8A"}],
                        "input": {
                            "shape": [-1, 2, 64, 64],
                            "dim_order": ["batch", "channel", "height", "width"],
                            "data_type": "float32",
                        },
                        "value_scaling": None,
                    }
                ],
                "mlm:output": [
                    {
                        "name": "labels",
                        "tasks": ["semantic-segmentation"],
                        "classification:classes": [
                            {"value": 2, "name": "crop_land", "description": "crop land"},
                            {"value": 0, "name": "water", "description": "seas", "color_hint": "0000FF"},
                            {"value": 1, "name": "wood", "title": "Wood"},
                        ],
                    }
                ],
            },
            "assets": {"model": {"href": "./net.pt2", "roles": ["mlm:model"]}},
        }
        change(content)
        path = tmp_path / "item.json"
        path.write_text(json.dumps(content))
        return path

    return write


def given_input(**values: object) -> Change:
    return lambda content: content["properties"]["mlm:input"][0].update(values)


def given_output(**values: object) -> Change:
    return lambda content: content["properties"]["mlm:output"][0].update(values)


def given_asset(**values: object) -> Change:
    return lambda content: content["assets"]["model"].update(values)


def test_classes_bands_and_values_as_they_are(item: Callable[..., Path]) -> None:
    engine, classes = load_engine(item())
    assert classes.names == ("water", "Wood", "crop land") and classes.palette[0] == (0, 0, 255)
    assert classes.ignore_index == 255
    assert engine.band_names == ("B04", "B8A")
    assert engine.preprocessing == given_preprocessing([0, 0], [1, 1])


@pytest.mark.parametrize(
    ("values", "means", "stds"),
    [
        ({"value_scaling": [{"type": "z-score", "mean": 5, "stddev": 2}]}, [5, 5], [2, 2]),
        ({"value_scaling": {"type": "scale", "value": 100}}, [0, 0], [100, 100]),
        (
            {
                "value_scaling": [
                    {"type": "min-max", "minimum": 10, "maximum": 60},
                    {"type": "scale", "value": 4},
                ]
            },
            [10, 0],
            [50, 4],
        ),
        ({"value_scaling": [{"type": "offset", "value": 7}, {"type": None}]}, [7, 0], [1, 1]),
        ({"bands": [], "value_scaling": [{"type": "offset", "value": 7}, None]}, [7, 0], [1, 1]),
        (
            {"norm_type": "z-score", "statistics": [{"mean": 3, "stddev": 4}, {"mean": 5, "stddev": 6}]},
            [3, 5],
            [4, 6],
        ),
    ],
    ids=["z-score", "scale", "min-max", "offset", "no-bands", "version-1.0"],
)
def test_scalings(
    item: Callable[..., Path], values: dict[str, object], means: list[float], stds: list[float]
) -> None:
    engine, _ = load_engine(item(given_input(**values)))
    assert engine.preprocessing == given_preprocessing(means, stds)


STRUCTURE = {
    "shape": [1, 2, 64, 64],
    "dim_order": ["batch", "channel", "height", "width"],
    "data_type": "float32",
}
REFUSED: list[tuple[Change, str]] = [
    (given_input(value_scaling=[{"type": "clip", "minimum": 0, "maximum": 1}]), "value_scaling clip cannot"),
    (given_input(value_scaling=[{"type": "z-score", "mean": 1}]), "value_scaling z-score lacks stddev"),
    (given_input(value_scaling=[{"type": "scale", "value": 0}]), "std above 0"),
    (given_input(value_scaling=[{"type": "scale", "value": 1}] * 3), "value_scaling of 3 bands for 2"),
    (given_input(value_scaling=[{"type": "scale", "value": "x"}]), "value_scaling.*number"),
    (given_input(pre_processing_function={"format": "python", "expression": "f"}), "pre_processing_function"),
    (given_input(norm_type="l2"), "value_scaling of 0 bands for 2"),
    (given_input(norm_type="z-score", norm_clip=[0, 1]), "norm_clip cannot"),
    (given_input(resize_type="interpolation-linear"), "resize_type interpolation-linear"),
    (given_input(bands=["a", "b", "c"]), "3 bands for a shape of 2"),
    (given_input(bands=["a", {"name": "ndvi", "expression": "a / b"}]), "band 'ndvi' is an expression"),
    (
        given_input(bands=["a", "b", "c"], input={**STRUCTURE, "shape": [1, 3, 9, 9]}),
        "has 3 bands, but its model file takes 2",
    ),
    (given_input(input={**STRUCTURE, "data_type": "uint8"}), "data_type is uint8"),
    (
        given_input(input={**STRUCTURE, "dim_order": ["batch", "height", "width", "channel"]}),
        "dim_order is batch, height, width, channel",
    ),
    (lambda content: content["properties"]["mlm:input"].append({}), "mlm:input.1.input: Field required"),
    (
        lambda content: content["properties"]["mlm:input"].extend(content["properties"]["mlm:input"]),
        "mlm:input has 2 inputs",
    ),
    (given_output(tasks=["regression"]), "mlm:output is for regression, not for semantic-segmentation"),
    (given_output(**{"classification:classes": [{"value": 1, "name": "a"}]}), "the values 1, not 0, 1, 2"),
    (
        given_output(**{"classification:classes": [{"value": 0, "name": "a", "color_hint": "red"}]}),
        "color_hint 'red'",
    ),
    (given_output(**{"classification:classes": None}), "does not name its classes"),
    (lambda content: content["properties"].pop("mlm:input"), "not a STAC item of a model"),
    (
        given_asset(href="net.pt", **{"mlm:artifact_type": "torch.save"}),
        r"net.pt \(torch.save\); .onnx, .xml, .pt2",
    ),
    (given_asset(roles=["data"]), "no asset has the role mlm:model"),
    (given_asset(href="gone.pt2"), "gone.pt2 is missing$"),
    (given_asset(href="https://example.org/far.pt2?a=b"), "far.pt2 is missing: download https://example.org"),
    (given_asset(**{"file:checksum": f"1220{64 * '0'}"}), "its sha256 is .* not 000000000000"),
    (given_asset(**{"file:checksum": "b240aa"}), "is not a multihash of sha1, sha256, sha512, md5"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_followed_is_named(item: Callable[..., Path], change: Change, message: str) -> None:
    with pytest.raises(CCSegformerError, match=message) as caught:
        load_engine(item(change))
    assert "item.json" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_arguments_replace_what_cannot_be_followed(item: Callable[..., Path]) -> None:
    def change(content: dict[str, Any]) -> None:
        given_input(pre_processing_function={"format": "python", "expression": "f"})(content)
        given_output(**{"classification:classes": [{"value": 7, "name": "a"}]})(content)

    classes, own = Classes(("x", "y", "z")), given_preprocessing([1, 2], [3, 4])
    engine, found = load_engine(item(change), classes=classes, preprocessing=own)
    assert (found, engine.preprocessing) == (classes, own)
    assert open_segmenter(item(change), classes, preprocessing=own)[0].preprocessing == own


def test_a_downloaded_file_and_its_checksum(item: Callable[..., Path], network: Path) -> None:
    digest = hashlib.sha512(network.read_bytes()).hexdigest()
    far = given_asset(href="https://example.org/x/net.pt2", **{"file:checksum": f"1340{digest}"})
    assert load_engine(item(far))[0].name == "torch"
    near = given_asset(href=network.as_uri())
    assert load_engine(item(near))[0].name == "torch"


def test_no_item(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    with pytest.raises(CCSegformerError, match=r"classes\.json: cannot be read"):
        load_engine(path)
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "not a STAC item"),
        ('{"names": []}', "not a STAC"),
    ):
        path.write_text(text)
        with pytest.raises(CCSegformerError, match=f"classes.json: {message}"):
            load_engine(path)


def test_imagenets_statistics_are_those_of_8_bit_colours(item: Callable[..., Path]) -> None:
    from ccsegformer.labelling.model_item import preprocessing_of_item, read_model_item

    means, stds = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    scaling = [{"type": "z-score", "mean": m, "stddev": s} for m, s in zip(means, stds, strict=True)]
    structure = {**STRUCTURE, "shape": [1, 3, 9, 9]}
    path = item(given_input(bands=["R", "G", "B"], input=structure, value_scaling=scaling))
    assert preprocessing_of_item(read_model_item(path), path, 3) == Preprocessing()


@pytest.mark.parametrize(
    ("descriptions", "expected"),
    [
        (("b3", "B4", "b08a"), (2, 3)),
        (("B4", "B4", "B8A"), None),
        (("B4", None, "B80A"), None),
        ((None, None), None),
    ],
)
def test_bands_by_name(descriptions: tuple[str | None, ...], expected: tuple[int, ...] | None) -> None:
    assert bands_by_name(("B04", "B8A"), descriptions) == expected
