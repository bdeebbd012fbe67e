"""Start a run from the weights of another, with that model's own network."""

from pathlib import Path
from typing import Any

from ccsegformer.errors import CheckpointError, RecipeError
from ccsegformer.models import CrissCrossSegformerConfig
from ccsegformer.models.checkpoints import saved_attention, saved_config
from ccsegformer.training.recipe import ModelSection, Recipe


def restart_recipe(recipe: Recipe, model: str | Path) -> Recipe:
    """Return the recipe with a model's weights as `pretrained`, and its size, attention and so on.

    Args:
        recipe: Recipe, which may leave out the keys of its section `model` or give them as they are.
        model: Folder of a run, of one of its checkpoints or of any other model, or a name on the hub.

    Raises:
        RecipeError: The recipe asks for another network; the message names the key.
        CheckpointError: There is no such model, or it has no published size.
    """
    found = _network_of(model)
    given = recipe.model.model_fields_set
    for key, value in found.items():
        wanted = getattr(recipe.model, key)
        if key in given and _comparable(wanted) != _comparable(value):
            raise RecipeError(
                f"model.{key}: {_text(wanted)}, but {model} has {_text(value)}: leave the key out "
                "to keep that, or start from model.pretrained instead of --init to change it"
            )
    return recipe.model_copy(update={"model": ModelSection(**found, pretrained=str(model))})


def _network_of(model: str | Path) -> dict[str, Any]:
    """Return the keys of a recipe that describe a model's network."""
    _check_finished(Path(model))
    saved = saved_config(model, {})
    try:
        config = CrissCrossSegformerConfig.from_dict({**saved, "attention": saved_attention(saved)})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{model}: {' '.join(str(error).split())}") from error
    if config.published_size is None:
        raise CheckpointError(
            f"{model}: is of none of the sizes b0 to b5: its hidden_sizes are {list(config.hidden_sizes)}, "
            f"its depths {list(config.depths)}"
        )
    stages = config.stage_attention
    return {
        "size": config.published_size,
        "attention": stages[0] if len({*stages}) == 1 else stages,
        "recurrence": config.recurrence,
        "projection": config.projection,
        "lepe": config.lepe,
    }


def _check_finished(folder: Path) -> None:
    """Name the last checkpoint of a run that has not finished, which has no weights of its own."""
    steps = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    if (folder / "recipe.yaml").is_file() and not (folder / "config.json").is_file() and steps:
        last = max(steps, key=lambda step: int(step) if step.isdecimal() else -1)
        raise CheckpointError(
            f"{folder}: this run has not finished; give its last checkpoint, {folder / f'checkpoint-{last}'}"
        )


def _comparable(value: Any) -> Any:
    """Return one attention for all stages as a list of four."""
    return (value,) * 4 if isinstance(value, str) else value


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value).lower()
