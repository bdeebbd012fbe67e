"""Arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[Path, typer.Argument(help="A recipe in YAML; see recipes/.", show_default=False)]
Model = Annotated[
    str,
    typer.Argument(help="A folder, a name on the hub, or an exported NAME.onnx.", show_default=False),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="A folder in ADE20K's layout, of georeferenced scenes or of parquet files, "
        "hf://datasets/ORG/NAME, scene_parse_150 once fetched, or 'procedural', the embedded scenes. "
        "Default: the recipe's.",
        show_default=False,
    ),
]
ImageColumn = Annotated[
    str | None,
    typer.Option(help="Of parquet files: the column of images. Default: image.", show_default=False),
]
MaskColumn = Annotated[
    str | None,
    typer.Option(help="Of parquet files: the column of masks. Default: annotation.", show_default=False),
]
ClassList = Annotated[
    str | None,
    typer.Option(
        "--classes",
        help="Of scenes or parquet files: a classes.json; of the latter also scene_parse_150, for raw ids. "
        "Default: the folder's.",
        show_default=False,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Change a recipe's key, as in training.epochs=2. May be repeated.", show_default=False
    ),
]
Protocol = Annotated[
    str | None,
    typer.Option(
        help="How images are shown and scored: segformer, mmsegmentation, report, or a YAML file. "
        "Default: whole images at their own size.",
        show_default=False,
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        help="What runs the network: openvino, torch, or onnxruntime for NAME.onnx. "
        "Default: openvino on a CPU, else torch.",
        show_default=False,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="What the network computes in: fp32, bf16 or fp16. Default: the protocol's, or fp32.",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove the run that OUTPUT holds.")]


def attentions_or_usage_error(given: list[str] | None) -> list[str]:
    """Return the attentions to run: by default all but the control."""
    from ccsegformer.models.attention import ATTENTIONS, CONTROL

    known = [name for name in ATTENTIONS if name != CONTROL]
    for name in given or []:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint="--attention")
    return given or known


def data_or_usage_error(
    given: str | None,
    in_recipe: str | None,
    image_column: str | None,
    mask_column: str | None,
    classes: str | None,
) -> str:
    """The data to use, with their columns and classes; with no data, bad usage."""
    if given is None and in_recipe is None:
        raise typer.BadParameter(
            "the recipe names no data: give a folder, or 'procedural'", param_hint="--data"
        )
    from ccsegformer.sources import with_options

    return with_options(given or in_recipe or "", image=image_column, mask=mask_column, classes=classes)
