"""The first command: the model and the scene that ship, what is printed, and the desktop's viewer."""

from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from ccsegformer.cli import app
from ccsegformer.data.procedural.scenes import ProceduralScenes
from ccsegformer.evaluation.evaluate import evaluate
from ccsegformer.labelling.example import model_location
from ccsegformer.labelling.loading import load_model


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_command_labels_the_scene_that_ships(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(typer, "launch", opened.append)
    done = CliRunner().invoke(app, ["predict", "example", "--open"])
    assert done.exit_code == 0, done.output
    assert {path.name for path in inside.glob("labelled/*")} == {
        "scene.jpg",
        "scene.png",
        "scene_overlay.png",
    }
    with Image.open(inside / "labelled/scene.png") as labels:
        assert labels.size == (512, 512)
    shares = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines() if line.endswith("%"))
    found = {name.split(maxsplit=1)[1]: float(share.rstrip("%")) for name, share in shares.items()}
    assert set(found) <= set(ProceduralScenes.classes.names)
    assert sum(found.values()) == pytest.approx(100, abs=0.6)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert "1 image in " in done.stdout
    assert opened == ["labelled/scene_overlay.png"]


def test_the_model_that_ships_is_as_good_as_its_card_says_and_small() -> None:
    model, classes = load_model("example")
    folder = Path(model_location("example"))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4_000_000
    assert classes.names == ProceduralScenes.classes.names
    found = evaluate(model, ProceduralScenes("validation", count=8)).metrics.mean_iou
    assert found == pytest.approx(float(_card_score(folder)), abs=0.05)


def _card_score(folder: Path) -> str:
    """Return the mean IoU at 256 pixels from the card's table."""
    (row,) = (line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| 256 "))
    return row.split("|")[2].strip().split()[0]


def test_a_model_folder_of_that_name_comes_first_and_is_said(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (inside / "example").mkdir()
    assert Path(model_location("example")).is_absolute()  # no model in it
    (inside / "example/config.json").write_text("{}")
    assert model_location("example") == "example"
    assert "taking the folder ./example, not the model that ships" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["example", "--output", "map.tif"], ["another"]])
def test_other_models_and_maps_need_an_image(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["predict", *arguments])
    assert done.exit_code == 2
    assert "name at least one image" in done.output


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("pre", ["predict"]),
        ("predict example --engine ", ["openvino", "torch", "onnxruntime"]),
        ("export example --format ", ["onnx", "pt2"]),
    ],
)
def test_the_shell_completes(typed: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = f"ccsegformer {typed}"
    monkeypatch.setenv("_CCSEGFORMER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    done = CliRunner().invoke(app, prog_name="ccsegformer")
    assert done.stdout.split() == expected
