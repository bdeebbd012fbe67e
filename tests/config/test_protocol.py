from pathlib import Path

import pytest

from ccsegformer.config.protocol import (
    EvaluationProtocol,
    ResizeSection,
    WindowSection,
    known_protocols,
    load_protocol,
    save_protocol,
)
from ccsegformer.errors import RecipeError

SHIPPED = sorted((Path(__file__).parents[2] / "recipes" / "protocols").glob("*.yaml"))


def complaint(name_or_path: str | Path) -> str:
    """Return the message of load_protocol's error, which must be one line."""
    with pytest.raises(RecipeError) as error:
        load_protocol(name_or_path)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_recipes_holds_the_built_in_protocols() -> None:
    assert [path.stem for path in SHIPPED] == known_protocols() == ["mmsegmentation", "report", "segformer"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_built_in_protocol_is_complete_and_names_its_source(path: Path) -> None:
    protocol = load_protocol(path)
    assert protocol == load_protocol(path.stem)
    assert protocol.name == path.stem
    text = path.read_text()
    assert all(f"\n{key}:" in text for key in EvaluationProtocol.model_fields), "a key is missing"
    header = text.partition("\nresize:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert all(f"# {word}:" in header for word in ("Command", "Source", "Figures"))


def test_the_published_protocols() -> None:
    mmsegmentation = EvaluationProtocol(resize=ResizeSection(short_side=512, long_side=2048))
    aligned = ResizeSection(short_side=512, long_side=2048, multiple_of=32)
    assert load_protocol("mmsegmentation") == mmsegmentation
    assert load_protocol("segformer") == EvaluationProtocol(resize=aligned)
    assert load_protocol("report") == EvaluationProtocol(score="mean_image_iou")


def test_a_saved_protocol_loads_unchanged(tmp_path: Path) -> None:
    protocol = EvaluationProtocol(
        window=WindowSection(size=1024, stride=768), scales=(0.5, 1.75), flip=True, precision="bf16"
    )
    save_protocol(protocol, tmp_path / "mine.yaml")
    assert load_protocol(tmp_path / "mine.yaml") == protocol
    assert protocol.name == "own"
    assert EvaluationProtocol().name == "default"


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    assert load_protocol(tmp_path / "empty") == EvaluationProtocol()


def test_summary() -> None:
    assert EvaluationProtocol().summary() == (
        "images at their own size; whole image; one scale; no flip; fp32; score: mean IoU of the data set"
    )
    protocol = EvaluationProtocol(
        resize=ResizeSection(short_side=512, long_side=2048, multiple_of=32),
        window=WindowSection(size=512, stride=384),
        scales=(0.5, 1.0),
        flip=True,
        precision="fp16",
        score="mean_image_iou",
    )
    assert protocol.summary() == (
        "shorter side resized to 512, the longer to at most 2048, then sides stretched up to multiples of 32"
        "; windows of 512, one every 384; scales 0.5, 1; with flip; fp16; score: mean of the images' own mIoU"
    )


def test_an_unknown_name_lists_the_built_in_ones() -> None:
    expected = "unknown protocol 'pascal': must be one of mmsegmentation, report, segformer, or a YAML file"
    assert complaint("pascal") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flips: true", "unknown key 'flips'; did you mean 'flip'?"),
        ("short_side: 512", "unknown key 'short_side'; did you mean 'resize.short_side'?"),
        ("window: {sise: 512, stride: 1}", "unknown key 'window.sise'; did you mean 'window.size'?"),
        ("window: {size: 512}", "key 'window.stride' is missing"),
        ("window: {size: 16, stride: 8}", "'window.size' should be greater than or equal to 32"),
        ("window: {size: 512, stride: 513}", "'window': stride 513 is larger than size 512"),
        ("resize: {long_side: 512}", "'resize': long_side needs a short_side"),
        ("resize: {short_side: 512, long_side: 511}", "'resize': long_side needs a short_side"),
        ("resize: {short_side: big}", "'resize.short_side' should be a valid integer, not \"big\""),
        ("scales: []", "'scales'"),
        ("scales: [0]", "'scales.0' should be greater than 0"),
        ("scales: [.inf]", "'scales.0'"),
        ("precision: float32", "'precision' must be 'fp32', 'bf16' or 'fp16', not \"float32\""),
        ("score: mean_iuo", "did you mean 'mean_iou'?"),
        ("flip: yes please", "'flip' should be a valid boolean"),
        ("[1, 2]", "must hold keys such as 'resize:' and 'flip:', not [1, 2]"),
        ("flip: true\nflip: false", "line 2: key 'flip' is given twice"),
    ],
)
def test_invalid_keys_and_values_are_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    message = complaint(path)
    assert message.startswith(f"{path}: ")
    assert expected in message


def test_unreadable_files(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    assert complaint(missing) == f"{missing}: cannot be read: No such file or directory"
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in complaint(tmp_path / "binary")
