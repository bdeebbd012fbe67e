"""Arguments that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

if TYPE_CHECKING:
    from ccsegformer.labelling.preprocess import Preprocessing

Number = TypeVar("Number", int, float)

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
        "or NAME.json, the STAC item of one; or example, a small model that ships "
        "(write ./example for a folder of that name).",
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
LabelLayerOption = Annotated[
    str | None, typer.Option(help="Layer of scenes' polygons. Default: the only one.", show_default=False)
]
LabelColumnOption = Annotated[
    str | None,
    typer.Option(
        help="Class column of scenes' polygons. Default: class, class_id or label.", show_default=False
    ),
]
DataBandsOption = Annotated[
    str | None,
    typer.Option(
        "--bands",
        help="Bands of scenes to use, in this order: 4,3,2. Default: all but alpha.",
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
WindowOption = Annotated[
    int | None,
    typer.Option(
        help="Side of the window that the network sees, in pixels. Default: the fastest that fits.",
        min=32,
        show_default=False,
    ),
]
OverlapOption = Annotated[
    int | None,
    typer.Option(
        help="Overlap of neighbouring windows, in pixels. Default: 128, or a quarter of a small window.",
        min=0,
        show_default=False,
    ),
]
OpenOption = Annotated[bool, typer.Option("--open", help="Show the result with the desktop's own program.")]
MemoryOption = Annotated[str, typer.Option(help="Memory that the default window may take.")]
ConfidenceOption = Annotated[
    bool, typer.Option("--confidence", help="Add a band to maps: the probability of the class.")
]
SimplifyOption = Annotated[
    float | None,
    typer.Option(help="Tolerance for simpler outlines, in the map's units.", show_default=False),
]
ModelClassesOption = Annotated[
    Path | None,
    typer.Option(
        "--classes", help="A classes.json. Default: the classes that the model names.", show_default=False
    ),
]
BandsOption = Annotated[
    str | None,
    typer.Option(help="Bands of scenes for the model, in its order: 4,3,2.", show_default=False),
]
MeanOption = Annotated[
    str | None,
    typer.Option(
        help="Mean of each band that the model expects, in stored units: 123.7,116.3,103.5. "
        "Default: what the model says, or ImageNet's.",
        show_default=False,
    ),
]
StdOption = Annotated[
    str | None,
    typer.Option(help="Standard deviation of each band, in the same units.", show_default=False),
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


def data_or_usage_error(given: str | None, in_recipe: str | None, **options: str | None) -> str:
    """Return the data set with its options; without a data set, raise a usage error."""
    if given is None and in_recipe is None:
        raise typer.BadParameter(
            "the recipe does not name a data set: give a folder or 'procedural'", param_hint="--data"
        )
    from ccsegformer.sources import with_options

    return with_options(given or in_recipe or "", **options)


def preprocessing_or_usage_error(mean: str | None, std: str | None) -> "Preprocessing | None":
    """Return the preprocessing that --mean and --std give, or None without them."""
    if (mean is None) != (std is None):
        raise typer.BadParameter("give both, or neither", param_hint="--mean, --std")
    if mean is None or std is None:
        return None
    from ccsegformer.labelling.preprocess import given_preprocessing

    return given_preprocessing(_numbers(mean, "--mean"), _numbers(std, "--std"))


def band_numbers_or_usage_error(bands: str | None) -> tuple[int, ...] | None:
    """Return the numbers that --bands gives, or None without it."""
    return None if bands is None else tuple(_numbers(bands, "--bands", int))


def _numbers(text: str, option: str, kind: type[Number] = float) -> list[Number]:  # type: ignore[assignment]
    try:
        return [kind(number) for number in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"write numbers with commas between them, not {text!r}", param_hint=option
        ) from None
