"""Recipes: validated YAML files that describe a training run. `docs/training.md` lists every key."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticKnownError

from ccsegformer.config.validation import Location, Section, validate
from ccsegformer.config.yaml_files import apply_override, read_yaml
from ccsegformer.data.transforms import Transform
from ccsegformer.files import write_atomically
from ccsegformer.models.attention import ATTENTIONS


def _registered(name: Any) -> Any:
    """Check that this is the name of an attention; the error is pydantic's for a wrong Literal."""
    if isinstance(name, str) and name in ATTENTIONS:
        return name
    *others, last = (f"'{known}'" for known in ATTENTIONS)
    raise PydanticKnownError("literal_error", {"expected": f"{', '.join(others)} or {last}"})


def _named_trackers(value: Any) -> Any:
    """Return one name as a tuple, and "none" as an empty one, as transformers' Trainer takes them."""
    if isinstance(value, str):
        return () if value == "none" else (value,)
    return tuple(value) if isinstance(value, list) else value


AttentionName = Annotated[str, BeforeValidator(_registered)]
OneOrFour = Annotated[
    Annotated[AttentionName, Tag("one")]
    | Annotated[tuple[AttentionName, AttentionName, AttentionName, AttentionName], Tag("four")],
    Discriminator(lambda value: "four" if isinstance(value, list | tuple) else "one"),
]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


ClassWeights = Annotated[
    Annotated[Literal["balanced"], Tag("name")]
    | Annotated[Annotated[tuple[NotNegative, ...], Field(min_length=1)], Tag("each")],
    Discriminator(lambda value: "each" if isinstance(value, list | tuple) else "name"),
]


class ModelSection(Section):
    """Network; see `CrissCrossSegformerConfig`. `pretrained` is a hub name or a folder of weights."""

    size: Literal["b0", "b1", "b2", "b3", "b4", "b5"] = "b0"
    attention: OneOrFour = "criss_cross"
    recurrence: Annotated[int, Field(ge=1)] = 1
    projection: Literal["multi_head", "ccnet"] = "multi_head"
    lepe: bool = True
    pretrained: str | None = None


TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
Trackers = Annotated[
    tuple[TrackerName, ...],
    BeforeValidator(_named_trackers),
]


class TrainingSection(Section):
    """Length of the run, batches, precision and the parameters to train.

    An optimizer step takes `accumulation` micro-batches of `batch_size` images, which the processes of a
    distributed run share. Exactly one of `epochs` and `steps` must be set. `skip_bad_files` leaves out
    samples that cannot be read, instead of stopping. `report_to` names the experiment trackers, as in
    transformers' Trainer.
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
    skip_bad_files: bool = False
    report_to: Trackers = ("tensorboard",)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("set exactly one of epochs and steps")
        return self


class OptimizerSection(Section):
    """AdamW, or Adafactor with a given learning rate (`scale_parameter=False, relative_step=False`).

    The decode head trains at `learning_rate * head_learning_rate_factor`. Weight decay applies to weights,
    and with `decay_biases` to the biases of linear and convolutional layers, but not to norms or CCNet's
    gamma.
    """

    name: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: Positive = 6e-5
    head_learning_rate_factor: Positive = 1.0
    weight_decay: NotNegative = 0.0
    decay_biases: bool = False


class ScheduleSection(Section):
    """Linear warm-up over `warmup_steps`, then decay to 0, linearly or as (1 - t) ** `power` ("poly")."""

    name: Literal["linear", "poly"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    power: Positive = 1.0


class WindowsSection(Section):
    """Windows of georeferenced scenes.

    `size` is their side in pixels; None means what the largest `random_crop` needs after `random_resize`, or
    512 without a crop. `rare_classes` is the share of windows centred on a pixel of a class that is drawn
    uniformly.
    """

    size: Annotated[int, Field(ge=1)] | None = None
    rare_classes: Annotated[float, Field(ge=0, le=1)] = 0.0


class ImagesSection(Section):
    """Images that are no scenes.

    `rare_classes` is the share of samples that show a class that is drawn uniformly.
    """

    rare_classes: Annotated[float, Field(ge=0, le=1)] = 0.0


class LossSection(Section):
    """Sum of losses, each times its weight; see `SegmentationLoss`.

    `class_weights` has one number for each class, or is "balanced": inversely proportional to the pixels of
    the class in the training masks.
    """

    cross_entropy: NotNegative = 1.0
    focal: NotNegative = 0.0
    dice: NotNegative = 0.0
    lovasz: NotNegative = 0.0
    gamma: NotNegative = 2.0
    class_weights: ClassWeights | None = None

    @model_validator(mode="after")
    def _is_a_loss(self) -> Self:
        if not (self.cross_entropy or self.focal or self.dice or self.lovasz):
            raise ValueError("one of cross_entropy, focal, dice and lovasz must be above 0")
        if self.class_weights and not (self.cross_entropy or self.focal):
            raise ValueError("class_weights are for cross_entropy and focal, which are both 0")
        if self.class_weights and self.class_weights != "balanced" and not any(self.class_weights):
            raise ValueError("one of the class_weights must be above 0")
        return self


class ValidationSection(Section):
    """Scoring during training: every so many steps or epochs, and after the last step; by default never.

    `keep_best` makes the weights with the highest mean IoU the result of the run. `patience` ends the run
    after that many validations in a row without a higher mean IoU than before.
    """

    steps: Annotated[int, Field(ge=1)] | None = None
    epochs: Positive | None = None
    keep_best: bool = False
    patience: Annotated[int, Field(ge=1)] | None = None

    @property
    def is_scheduled(self) -> bool:
        """Whether the run is scored at all."""
        return self.steps is not None or self.epochs is not None

    @model_validator(mode="after")
    def _one_schedule(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("set steps or epochs, not both")
        if (self.keep_best or self.patience) and not self.is_scheduled:
            raise ValueError("keep_best and patience need steps or epochs between validations")
        return self


class Recipe(Section):
    """Everything that determines the result of a run, except the images."""

    model: ModelSection = ModelSection()
    data: str | None = None
    windows: WindowsSection = WindowsSection()
    images: ImagesSection = ImagesSection()
    transforms: tuple[Transform, ...] = ()
    training: TrainingSection
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    validation: ValidationSection = ValidationSection()


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as `"training.epochs=2"`, whose values are YAML.

    Raises:
        RecipeError: An invalid recipe. The message, one line, names the file and every wrong key, with the
            closest valid name.
    """
    content = read_yaml(path, "sections such as 'model:' and 'training:'")
    for override in overrides:
        apply_override(override, content)
    return validate(Recipe, content, path, _locate)


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write a recipe with all its keys, for `load_recipe`."""
    write_atomically(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))


def differing_keys(one: Recipe, other: Recipe) -> list[str]:
    """Return the dotted names of the keys whose values differ."""
    left, right = _flatten(one.model_dump(mode="json")), _flatten(other.model_dump(mode="json"))
    return [key for key in left | right if left.get(key, ...) != right.get(key, ...)]


def _locate(location: Location) -> tuple[list[str], Iterable[str] | None]:
    """Return the keys that lead to an error, without the branches of unions that pydantic inserts.

    Also return the valid keys of a transform, which that branch determines.
    """
    if location[:2] == ("training", "report_to"):
        return ["training", "report_to"], None
    in_transform = location[0] == "transforms"
    in_union = in_transform or location[:2] in (("model", "attention"), ("loss", "class_weights"))
    path = [str(key) for index, key in enumerate(location) if not (in_union and index == 2)]
    if not in_transform or len(location) < 3:
        return path, None
    kinds = get_args(get_args(Transform)[0])
    fields = [kind.model_fields for kind in kinds if kind.model_fields["name"].default == location[2]]
    return path, fields[0] if fields else None


def _flatten(tree: object, prefix: str = "") -> dict[str, object]:
    """Turn {"training": {"seed": 0}} into {"training.seed": 0}; lists are values."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
