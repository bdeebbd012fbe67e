"""The first command: the model and the scene that ship, what is printed, and the desktop's viewer."""

import io
from pathlib import Path

import pytest
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from ccsegformer.cli import app
from ccsegformer.cli._open import open_result
from ccsegformer.cli._shares import ClassShares
from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.data.procedural.scenes import ProceduralScenes
from ccsegformer.evaluation.evaluate import evaluate
from ccsegformer.labelling.example import model_location, write_example_scene
from ccsegformer.labelling.loading import load_engine, load_model
from tests.labelling.test_scene import tiny_model


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_command_labels_the_scene_that_ships(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(typer, "launch", opened.append)  # which returns None, as if a program were found
    done = CliRunner().invoke(app, ["predict", "example", "--open"])
    assert done.exit_code == 0, done.output
    assert {path.name for path in inside.glob("labelled/*")} == {
        "example.jpg",
        "example.png",
        "example_overlay.png",
    }
    with Image.open(inside / "labelled/example.png") as labels:
        assert labels.size == (512, 512)
    assert done.stdout.split()[:3] == [
        "labelled/example.jpg",
        "labelled/example.png",
        "labelled/example_overlay.png",
    ]
    shares = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines() if line.endswith("%"))
    found = {name.split(maxsplit=1)[1]: float(share.rstrip("%")) for name, share in shares.items()}
    assert set(found) <= set(ProceduralScenes.classes.names)
    assert sum(found.values()) == pytest.approx(100, abs=0.6)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert "1 image in " in done.stdout
    assert opened == [str(inside / "labelled/example_overlay.png")]


def test_a_desktop_without_programs_is_said(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(inside))  # no xdg-open
    open_result(Path("report.html"))
    assert capsys.readouterr().err == "--open: found no program that shows report.html\n"


def test_the_report_of_an_evaluation_is_shown(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_example_scene(inside / "data/images/validation")
    mask = inside / "data/annotations/validation/example.png"
    mask.parent.mkdir(parents=True)
    Image.new("L", (512, 512)).save(mask)
    write_classes(ProceduralScenes.classes, inside / "data/classes.json")
    opened: list[str] = []
    monkeypatch.setattr(typer, "launch", opened.append)
    command = ["evaluate", "example", "--data", "data", "--open"]
    assert "--output" in CliRunner().invoke(app, command).output
    done = CliRunner().invoke(app, [*command, "--output", "scores"])
    assert done.exit_code == 0, done.output
    assert opened == [str(inside / "scores/evaluation.html")]


def test_class_names_are_printed_as_they_are() -> None:
    shares = ClassShares(Classes(("[red]roof", "field")))
    shares.pixels[:], shares.images = (1, 3), 1
    console = Console(file=io.StringIO(), width=40)
    shares.print(2.0, console)
    lines = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert [line[1:] for line in lines[:2]] == [["field", "75.0%"], ["[red]roof", "25.0%"]]


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


@pytest.mark.parametrize("is_file", [True, False])
def test_the_word_always_means_the_model_that_ships(
    inside: Path, capsys: pytest.CaptureFixture[str], is_file: bool
) -> None:
    shipped = model_location("example")
    assert (Path(shipped) / "model.safetensors").is_file()
    assert capsys.readouterr().err == ""
    (inside / "example").touch() if is_file else (inside / "example").mkdir()
    assert model_location("example") == shipped
    said = "example: the model that ships; write ./example for the one here\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("own", ["./example", Path("example")])
def test_a_folder_of_that_name_can_be_loaded(inside: Path, own: str | Path) -> None:
    tiny_model(num_labels=2).save_pretrained(inside / "example")
    write_classes(Classes(("ground", "water")), inside / "example/classes.json")
    assert load_model(own)[1].names == ("ground", "water")
    assert load_engine(own)[1].names == ("ground", "water")
    assert load_engine("example")[1].names == ProceduralScenes.classes.names


@pytest.mark.parametrize("arguments", [["example", "--output", "map.tif"], ["another"], ["./example"]])
def test_other_models_and_maps_need_an_image(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["predict", *arguments])
    assert done.exit_code == 2
    assert "name at least one image" in done.output


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("pre", ["predict"]),
        ("predict example --engine ", ["openvino", "torch", "onnxruntime"]),
        ("predict example --precision ", ["fp32", "bf16", "fp16"]),
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
