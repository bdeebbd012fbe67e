"""Arguments that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

DATA_HELP = (
    "Data set: a folder (ADE20K layout, georeferenced scenes or parquet files), hf://datasets/ORG/NAME, "
    "scene_parse_150 or procedural."
)

RecipeArgument = Annotated[
    Path, typer.Argument(help="Recipe file (YAML), such as those in recipes/.", show_default=False)
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        help="Model folder, hub name, or file: NAME.onnx, NAME.xml, NAME.pt2, "
        "or NAME.json, the STAC item of one.",
        show_default=False,
    ),
]
AttentionOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Attention to compare, such as efficient or criss_cross. Can be repeated. Default: all.",
        show_default=False,
    ),
]
DataOption = Annotated[
    str | None, typer.Option(help=f"{DATA_HELP} Default: the recipe's.", show_default=False)
]
ImageColumnOption = Annotated[
    str | None, typer.Option(help="Image column of parquet files. Default: image.", show_default=False)
]
MaskColumnOption = Annotated[
    str | None, typer.Option(help="Mask column of parquet files. Default: annotation.", show_default=False)
]
ClassesOption = Annotated[
    str | None,
    typer.Option(
        "--classes",
        help="Classes of the data: a classes.json, a palette file (.txt) of lines R G B NAME, "
        "or scene_parse_150 for masks with its raw ids. "
        "Default: the folder's classes.json.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override a key of the recipe, such as training.epochs=2. Can be repeated.",
        show_default=False,
    ),
]
ProtocolOption = Annotated[
    str | None,
    typer.Option(
        help="Evaluation protocol: segformer, mmsegmentation, report or a YAML file. "
        "Default: whole images at their own size.",
        show_default=False,
    ),
]
EngineOption = Annotated[
    Literal["openvino", "torch", "onnxruntime"] | None,
    typer.Option(
        help="Engine that runs the model; onnxruntime is for NAME.onnx. "
        "Default: openvino on a CPU, torch on a GPU.",
        show_default=False,
    ),
]
PrecisionOption = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    typer.Option(
        help="Number format to compute in. Default: the protocol's, or fp32.",
        show_default=False,
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Delete the run in OUTPUT.")]


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
    """Return the data set with its columns and classes; without a data set, raise a usage error."""
    if given is None and in_recipe is None:
        raise typer.BadParameter(
            "the recipe does not name a data set: give a folder or 'procedural'", param_hint="--data"
        )
    from ccsegformer.sources import with_options

    return with_options(given or in_recipe or "", image=image_column, mask=mask_column, classes=classes)
