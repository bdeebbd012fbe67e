"""Recipes: what a training run does, as a validated YAML file. `docs/training.md` lists every key."""

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import ErrorDetails

from ccsegformer.data.transforms import Transform
from ccsegformer.errors import RecipeError
from ccsegformer.files import write_atomically
from ccsegformer.training._yaml import apply_override, brief, parse

Attention = Literal["criss_cross", "efficient", "none"]
OneOrFour = Annotated[
    Annotated[Attention, Tag("one")]
    | Annotated[tuple[Attention, Attention, Attention, Attention], Tag("four")],
    Discriminator(lambda value: "four" if isinstance(value, list | tuple) else "one"),
]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    """The network, see `CrissCrossSegformerConfig`; `pretrained` is a hub name or a folder of weights."""

    size: Literal["b0", "b1", "b2", "b3", "b4", "b5"] = "b0"
    attention: OneOrFour = "criss_cross"
    recurrence: Annotated[int, Field(ge=1)] = 1
    projection: Literal["multi_head", "ccnet"] = "multi_head"
    pretrained: str | None = None


class TrainingSection(_Section):
    """How long, on how much at a time, and which parameters.

    One optimizer step sees `batch_size * accumulation` images: `accumulation` micro-batches of `batch_size`,
    which the processes of a distributed run share between them. Exactly one of `epochs` and `steps` is given.
    """

    epochs: Positive | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 4
    accumulation: Annotated[int, Field(ge=1)] = 1
    freeze: Literal["none", "encoder", "report"] = "none"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    save_steps: Annotated[int, Field(ge=1)] = 500
    workers: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps, and leave the other out or null")
        return self


class OptimizerSection(_Section):
    """AdamW, or Adafactor with a given learning rate (`scale_parameter=False, relative_step=False`).

    The decode head learns at `learning_rate * head_learning_rate_factor`. Weights decay, norms and CCNet's
    gamma do not; the biases of linear and convolutional layers do with `decay_biases`.
    """

    name: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: Positive = 6e-5
    head_learning_rate_factor: Positive = 1.0
    weight_decay: NotNegative = 0.0
    decay_biases: bool = False


class ScheduleSection(_Section):
    """Linear warm-up over `warmup_steps`, then down to 0 linearly or as (1 - t) ** `power` (poly)."""

    name: Literal["linear", "poly"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    power: Positive = 1.0


class Recipe(_Section):
    """Everything that decides what a run learns, except the images themselves."""

    model: ModelSection = ModelSection()
    data: str | None = None
    transforms: tuple[Transform, ...] = ()
    training: TrainingSection
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; each override is `"section.key=value"`, with the value in YAML (`"training.epochs=2"`).

    Raises:
        RecipeError: one line that names the file and every key that is wrong, with the nearest right name.
    """
    try:
        content = parse(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not text in UTF-8") from error
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise RecipeError(
            f"{path}: must hold sections such as 'model:' and 'training:', not {brief(content)}"
        )
    for override in overrides:
        apply_override(override, content)
    try:
        # Through JSON: its strict mode takes a list for a tuple, but no word for a number and no yes for a 1.
        return Recipe.model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        raise RecipeError(f"{path}: " + "; ".join(_describe(detail) for detail in error.errors())) from None
    except ValueError as error:  # what JSON cannot hold, such as a list inside itself
        raise RecipeError(f"{path}: {error}") from None


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write a recipe with all its keys, so that `load_recipe` gives back the same one."""
    write_atomically(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))


def differing_keys(one: Recipe, other: Recipe) -> list[str]:
    """Dotted names of the keys whose values differ between two recipes."""
    left, right = _flatten(one.model_dump(mode="json")), _flatten(other.model_dump(mode="json"))
    return [key for key in left | right if left.get(key, ...) != right.get(key, ...)]


def _describe(detail: ErrorDetails) -> str:
    """One pydantic error as "'section.key' ...", with the nearest right name where one is near."""
    path, value, context = _path(detail["loc"]), detail["input"], detail.get("ctx", {})
    name = ".".join(path)
    match detail["type"]:
        case "extra_forbidden":
            return f"unknown key '{name}'" + _nearest_key(path, detail["loc"])
        case "missing":
            return f"key '{name}' is missing"
        case "union_tag_not_found":
            return f"key '{name}.name' is missing"
        case "union_tag_invalid":
            return f"'{name}.name' must be one of {_choice(context['expected_tags'], context['tag'])}"
        case "literal_error":
            return f"'{name}' must be {_choice(context['expected'], value)}"
        case "value_error":
            return f"'{name}': {context['error']}"
    wanted = detail["msg"].removeprefix("Input ")
    return f"'{name}' {wanted[0].lower()}{wanted[1:]}, not {brief(value)}"


def _path(location: tuple[int | str, ...]) -> list[str]:
    """The keys that lead to an error, without pydantic's note of which branch of a union it took."""
    in_union = location[0] == "transforms" or location[:2] == ("model", "attention")
    return [str(key) for index, key in enumerate(location) if not (in_union and index == 2)]


def _nearest_key(path: list[str], location: tuple[int | str, ...]) -> str:
    """The same key in another section, where it belongs, or else a right name for this one."""
    *parents, key = path
    if parents[:1] == ["transforms"]:  # the location says of which kind
        kinds = get_args(get_args(Transform)[0])
        kind = next(kind for kind in kinds if kind.model_fields["name"].default == location[2])
        return _nearest(key, kind.model_fields, parents)
    sections = {
        name: list(getattr(field.annotation, "model_fields", ()))
        for name, field in Recipe.model_fields.items()
    }
    for section, names in sections.items():
        if key in names:
            return f"; did you mean '{section}.{key}'?"
    return _nearest(key, sections[parents[0]] if parents else sections, parents)


def _nearest(word: object, choices: Iterable[str], parents: Sequence[str] = ()) -> str:
    matches = difflib.get_close_matches(str(word), list(choices), n=1)
    return f"; did you mean '{'.'.join([*parents, *matches])}'?" if matches else ""


def _choice(expected: str, value: object) -> str:
    return f"{expected}, not {brief(value)}" + _nearest(value, re.findall(r"'([^']*)'", expected))


def _flatten(tree: object, prefix: str = "") -> dict[str, object]:
    """{"training": {"seed": 0}} as {"training.seed": 0}; lists are values."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
