from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccsegformer.data.transforms import HorizontalFlip, PhotometricDistortion, RandomCrop, RandomResize
from ccsegformer.errors import RecipeError
from ccsegformer.training.recipe import (
    ModelSection,
    OptimizerSection,
    Recipe,
    ScheduleSection,
    TrainingSection,
    differing_keys,
    load_recipe,
    save_recipe,
)

RECIPES = Path(__file__).parents[2] / "recipes"
MINIMAL = "training: {steps: 10}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


def complaint(path: Path, *overrides: str) -> str:
    """Return the error of load_recipe, which must be one line that begins with the file."""
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_the_report_s_recipe_is_its_section_5() -> None:
    recipe = load_recipe(RECIPES / "report.yaml")
    assert recipe.model == ModelSection(
        size="b0", attention="criss_cross", recurrence=1, projection="ccnet", pretrained="nvidia/mit-b0"
    )
    assert recipe.training == TrainingSection(
        epochs=16, batch_size=1, accumulation=4, freeze="report", save_steps=2000
    )
    assert recipe.optimizer == OptimizerSection(name="adafactor", learning_rate=6e-5, weight_decay=0)
    assert [transform.probability for transform in recipe.transforms] == [0.25] * 6


def test_segformer_s_recipe_is_the_paper_s() -> None:
    recipe = load_recipe(RECIPES / "segformer.yaml")
    assert recipe.model == ModelSection(size="b0", attention="efficient", pretrained="nvidia/mit-b0")
    assert recipe.training == TrainingSection(steps=160_000, batch_size=16, accumulation=1, save_steps=4000)
    assert recipe.optimizer == OptimizerSection(
        name="adamw",
        learning_rate=6e-5,
        head_learning_rate_factor=10,
        weight_decay=0.01,
        decay_biases=True,
    )
    assert recipe.schedule == ScheduleSection(name="poly", warmup_steps=1500, power=1)
    assert recipe.transforms == (
        RandomResize(probability=1, ratio=(0.5, 2), scale=(2048, 512)),
        RandomCrop(probability=1, sizes=(512,), max_class_share=0.75, pad=False),
        HorizontalFlip(probability=0.5),
        PhotometricDistortion(probability=1),
    )


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads_and_is_headed_by_how_it_was_run(path: Path) -> None:
    load_recipe(path)
    header = path.read_text().partition("\nmodel:")[0]
    assert all(line.startswith("#") for line in header.splitlines() if line)
    assert "# Command:" in header
    for word in ("hardware", "time", "score"):
        assert word in header.lower()


def test_a_saved_recipe_is_the_same_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(
        RECIPES / "report.yaml",
        ["model.attention=[efficient, criss_cross, none, criss_cross]", "optimizer.learning_rate=1e-7"],
    )
    save_recipe(recipe, tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_defaults(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe == Recipe(training=TrainingSection(steps=10))
    assert recipe.optimizer.name == "adamw"
    assert recipe.training.freeze == "none"


@pytest.mark.parametrize("number", ["6e-5", "6.0e-5", "6.e-05", "0.00006", ".6e-4", "+6E-5"])
def test_floats_in_any_notation(path: Path, number: str) -> None:
    path.write_text(f"{MINIMAL}optimizer: {{learning_rate: {number}}}")
    assert load_recipe(path).optimizer.learning_rate == pytest.approx(6e-5, rel=1e-12)


def test_overrides(path: Path) -> None:
    path.write_text(f"{MINIMAL}transforms: [{{name: invert}}, {{name: random_crop}}]")
    recipe = load_recipe(
        path,
        [
            "training.steps=null",
            "training.epochs=2",
            "optimizer.learning_rate=1e-3",
            "transforms.1.sizes=[64, 96]",
            "model.attention=[none, none, efficient, criss_cross]",
            "data=/some/where=else",
        ],
    )
    assert (recipe.training.epochs, recipe.training.steps) == (2, None)
    assert recipe.optimizer.learning_rate == 1e-3
    assert recipe.transforms[1].sizes == (64, 96)  # type: ignore[union-attr]
    assert recipe.model.attention == ("none", "none", "efficient", "criss_cross")
    assert recipe.data == "/some/where=else"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trainng: {steps: 1}", "unknown key 'trainng'; did you mean 'training'?"),
        ("training: {step: 1}", "unknown key 'training.step'; did you mean 'training.steps'?"),
        (
            "training: {steps: 1, learning_rate: 1}",
            "unknown key 'training.learning_rate'; did you mean 'optimizer.learning_rate'?",
        ),
        ("{training: {steps: 1}, batch_size: 2}", "'batch_size'; did you mean 'training.batch_size'?"),
        ("training: {steps: 1, quux: 1}", "unknown key 'training.quux'"),
        (
            "{training: {steps: 1}, transforms: [{name: random_crop, size: 64}]}",
            "unknown key 'transforms.0.size'; did you mean 'transforms.0.sizes'?",
        ),
        (
            "{training: {steps: 1}, transforms: [{name: random_crob}]}",
            "not \"random_crob\"; did you mean 'random_crop'?",
        ),
        ("{training: {steps: 1}, transforms: [{probability: 1}]}", "key 'transforms.0.name' is missing"),
        (
            "{training: {steps: 1}, transforms: [{name: invert, probability: 2}]}",
            "'transforms.0.probability' should be less than or equal to 1, not 2",
        ),
        (
            "{training: {steps: 1}, model: {attention: cris_cross}}",
            "'model.attention' must be 'efficient', 'criss_cross' or 'none', not \"cris_cross\"",
        ),
        (
            "{training: {steps: 1}, model: {attention: [none, none, none, full]}}",
            "'model.attention.3' must be",
        ),
        ("{training: {steps: 1}, model: {attention: [none, none]}}", "key 'model.attention.2' is missing"),
        (
            "{training: {steps: 1}, optimizer: {head_lr_factor: 10}}",
            "'optimizer.head_lr_factor'; did you mean 'optimizer.head_learning_rate_factor'?",
        ),
        (
            "{training: {steps: 1, decay_bias: true}, optimizer: {decay_biases: 1}}",
            "'optimizer.decay_biases' should be a valid boolean, not 1",
        ),
        (
            "{training: {steps: 1}, transforms: [{name: random_crop, max_class_ratio: 0.75}]}",
            "did you mean 'transforms.0.max_class_share'?",
        ),
        (
            "{training: {steps: 1}, transforms: [{name: random_resize, scale: [2048]}]}",
            "key 'transforms.0.scale.1' is missing",
        ),
        (
            "{training: {steps: 1}, transforms: [{name: random_resize, scale: 512}]}",
            "'transforms.0.scale' should be a valid array, not 512",
        ),
        (
            "{training: {steps: 1}, transforms: [{name: photometric_distorsion}]}",
            "did you mean 'photometric_distortion'?",
        ),
        ("training: {steps: many}", "'training.steps' should be a valid integer, not \"many\""),
        ("training: {steps: 2.5}", "'training.steps' should be a valid integer"),
        ("training: {steps: yes}", "'training.steps' should be a valid integer, not true"),
        ("training: {steps: 0}", "'training.steps' should be greater than or equal to 1, not 0"),
        ("training: {epochs: .inf}", "'training.epochs' should be a finite number"),
        ("training: {epochs: 1, steps: 1}", "'training': set exactly one of epochs and steps"),
        ("training: {seed: 1}", "'training': set exactly one of epochs and steps"),
        ("training: 3", "'training' should be an object, not 3"),
        ("", "key 'training' is missing"),
        ("[1, 2]", "must hold sections such as 'model:' and 'training:', not [1, 2]"),
        ("training: {steps: 1}\ntraining: {steps: 2}", "line 2: key 'training' is given twice"),
        ("training: {steps: 1,\n  steps: 2}", "line 2: key 'steps' is given twice"),
        ("training: [", "line 1: "),
        ("training: !!python/name:os.system", "line 1: could not determine a constructor"),
        ("training: &a [*a]", "ircular reference"),
    ],
)
def test_what_is_wrong_is_named(path: Path, text: str, expected: str) -> None:
    path.write_text(text)
    message = complaint(path)
    assert message.startswith(f"{path}: ")
    assert expected in message


def test_every_wrong_key_is_named(path: Path) -> None:
    path.write_text("training: {steps: 0, batch_size: 0, sed: 1}")
    message = complaint(path)
    assert all(key in message for key in ("training.steps", "training.batch_size", "training.sed"))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.epoch=2", "unknown key 'training.epoch'; did you mean 'training.epochs'?"),
        ("optimiser.name=adamw", "unknown key 'optimiser'; did you mean 'optimizer'?"),
        ("training.steps", "write it as section.key=value"),
        ("=2", "write it as section.key=value"),
        ("training.=2", "write it as section.key=value"),
        ("training.steps.more=2", "10 has no key 'more'"),
        ("transforms.0.name=invert", "'0' should be a number from"),
        ("training.steps=[", "override 'training.steps=['"),
    ],
)
def test_wrong_overrides_are_named(path: Path, override: str, expected: str) -> None:
    path.write_text(f"{MINIMAL}transforms: []")
    assert expected in complaint(path, override)


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    assert "No such file" in complaint(tmp_path / "missing.yaml")
    assert "Is a directory" in complaint(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"data: \xe9t\xe9")
    assert "UTF-8" in complaint(tmp_path / "latin.yaml")


@given(text=st.text(alphabet="training: {}[]steps,1-\n\t'\"&*!#|>%@`x", max_size=60))
def test_any_text_is_a_recipe_or_one_line(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text)
    try:
        load_recipe(path)
    except RecipeError as error:
        assert "\n" not in str(error)


def test_differing_keys_are_dotted(path: Path) -> None:
    assert differing_keys(load_recipe(path), load_recipe(path)) == []
    other = load_recipe(path, ["training.seed=1", "optimizer.name=adafactor", "transforms=[{name: invert}]"])
    assert sorted(differing_keys(load_recipe(path), other)) == [
        "optimizer.name",
        "training.seed",
        "transforms",
    ]
