import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccsegformer.data.colors import read_palette_file
from ccsegformer.data.labels import Classes, colorize, read_classes, write_classes
from ccsegformer.data.palette import default_palette
from ccsegformer.errors import DataError


def test_written_classes_are_read_back(tmp_path: Path) -> None:
    for classes in (
        Classes(("road", "café")),
        Classes(("a", "b"), palette=((1, 2, 3), (0, 255, 0)), ignore_index=65535),
    ):
        write_classes(classes, tmp_path / "classes.json")
        assert read_classes(tmp_path / "classes.json") == classes
    assert len(classes) == 2
    assert classes.id2label == {0: "a", 1: "b"}


def test_names_and_ignore_index_are_enough(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('{"names": ["a", "b"], "ignore_index": 9, "source": "a survey"}')
    classes = read_classes(tmp_path / "classes.json")
    assert classes == Classes(("a", "b"), default_palette(2), 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": None}, "'names' is missing"),
        ({"ignore_index": None}, "'ignore_index' is missing"),
        ({"names": "road"}, "'names' must be a list"),
        ({"names": []}, "no class names"),
        ({"names": ["road", 3]}, "one is 3"),
        ({"names": ["road", " "]}, "one is ' '"),
        ({"names": ["road", "sky", "road"]}, "'road' occurs more than once"),
        ({"ignore_index": "255"}, "'ignore_index' must be a whole number, not '255'"),
        ({"ignore_index": True}, "'ignore_index' must be a whole number, not True"),
        ({"ignore_index": 1}, "ignore_index 1 must lie outside the classes"),
        ({"ignore_index": -1}, "ignore_index -1 must lie outside the classes, between 2 and 65535"),
        ({"ignore_index": 65536}, "ignore_index 65536"),
        ({"palette": [[0, 0, 0]]}, "palette has 1 colours for 2 classes"),
        ({"palette": [[0, 0, 0], [0, 0, 256]]}, "'palette' must be a list of"),
        ({"palette": [[0, 0, 0], [0, 0]]}, "'palette' must be a list of"),
        ({"palette": {"road": "red"}}, "'palette' must be a list of"),
        ({"label_map": {"7": "road"}}, "unknown key 'label_map'; did you mean 'map'?"),
        ({"reduce_zero_label": True}, "unknown key 'reduce_zero_label'; did you mean 'reduce_labels'?"),
        ({"do_reduce_labels": True}, "did you mean 'reduce_labels'?"),
        ({"colours": True}, "unknown key 'colours'; did you mean 'colors'?"),
    ],
)
def test_a_wrong_key_is_one_line_with_file_and_key(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    content = {"names": ["road", "sky"], "ignore_index": 255} | change
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(DataError) as caught:
        read_classes(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{names: }", "not valid JSON"), (b"\xff\xfe", "not valid JSON"), (b"[1]", "must hold an object")],
)
def test_a_file_that_is_not_json_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "classes.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_classes(path)
    assert str(path) in str(caught.value)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"classes\.json: cannot be read: No such file"):
        read_classes(tmp_path / "classes.json")


def test_default_colours_differ_and_do_not_depend_on_the_count() -> None:
    palette = default_palette(150)
    assert default_palette(11) == palette[:11]
    colors = np.array(palette)
    distances = np.abs(colors[:, None] - colors[None]).sum(axis=-1) + 765 * np.eye(150, dtype=int)
    assert distances.min() >= 30
    assert colors.sum(axis=1).min() >= 90  # none looks like the black of ignored pixels
    assert len(default_palette(5000)) == 5000


def test_colorize_draws_classes_in_their_colours_and_ignored_pixels_black() -> None:
    classes = Classes(("a", "b"), ((10, 20, 30), (40, 50, 60)), ignore_index=1000)
    colors = colorize(np.array([[0, 1, 1000]], dtype=np.int32), classes)
    assert colors.dtype == np.uint8
    assert colors.tolist() == [[[10, 20, 30], [40, 50, 60], [0, 0, 0]]]
    for label in (2, -1):
        with pytest.raises(DataError, match=f"label {label} is outside the classes 0-1"):
            colorize(np.array([[0, label]]), classes)


def test_one_name_is_a_class_against_a_background(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    content = {"names": ["road"], "palette": [[9, 8, 7]], "ignore_index": 254, "map": {"0": 0, "255": "road"}}
    path.write_text(json.dumps(content))
    classes = read_classes(path)
    assert classes.names == ("background", "road") and classes.palette == ((0, 0, 0), (9, 8, 7))
    assert classes.label_map == ((0, 0), (255, 1)) and classes.id2label == {0: "road"}
    write_classes(classes, path)
    assert json.loads(path.read_text())["names"] == ["road"] and read_classes(path) == classes
    assert Classes(("Background",)).names == ("other", "Background")
    assert not Classes(("background", "road")).one_label

    del content["map"]
    path.write_text(json.dumps({**content, "reduce_labels": True}))
    with pytest.raises(DataError, match="'reduce_labels' ignores 0, the background of the only class"):
        read_classes(path)
    path.write_text(json.dumps({**content, "colors": True}))
    assert read_classes(path).colors == (((0, 0, 0), 0), ((9, 8, 7), 1))
    with pytest.raises(DataError, match="one class, not 3"):
        Classes(("a", "b", "c"), one_label=True)


def test_the_only_name_of_a_palette_file_is_no_background(tmp_path: Path) -> None:
    path = tmp_path / "palette.txt"
    path.write_text("0 0 0 ignore\n255 0 0 road\n200 0 0 road\n")
    classes = read_palette_file(path)
    assert classes.names == ("background", "road")
    assert dict(classes.colors) == {(0, 0, 0): 255, (255, 0, 0): 1, (200, 0, 0): 1}
