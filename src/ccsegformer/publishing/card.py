"""The model card of a run: README.md, with the metadata that the Hugging Face hub reads."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ccsegformer import __version__
from ccsegformer.errors import OutputError
from ccsegformer.files import write_atomically
from ccsegformer.models.origins import HUB_PREFIX
from ccsegformer.publishing._sections import (
    describe_data,
    describe_limits,
    describe_model,
    describe_scores,
    describe_training,
    describe_use,
    escape,
)
from ccsegformer.publishing.licence import Licence, licence_of
from ccsegformer.publishing.names import public_data, public_model
from ccsegformer.publishing.record import ModelRecord, read_record

CARD = "README.md"
MARK = "<!-- Written by ccsegformer from the records in this folder; it is written anew when published. -->"


def make_card(record: ModelRecord, name: str, license: str | None = None) -> ModelCard:
    """Make the card of a model.

    Scores appear in the text and, in the hub's form, in the metadata (`model-index`).

    Args:
        record: What the model's folder holds.
        name: Name of the model on the hub, or of its folder.
        license: Licence of weights trained from random ones; see `licence_of`.

    Raises:
        DataError: `license` is given for weights that derive from others.
    """
    licence = licence_of(record.origins, license)
    sections = [
        f"# {escape(name.rpartition('/')[2])}",
        MARK,
        describe_model(record),
        describe_use(record, name),
        describe_data(record),
        describe_training(record),
        describe_scores(record),
        describe_limits(record),
        f"## Licence\n\n{licence.text} The data have licences of their own, which this card does not know.",
        f"Made with ccsegformer {__version__}.",
    ]
    metadata = card_metadata(record, name, licence)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n")


def card_metadata(record: ModelRecord, name: str, licence: Licence) -> ModelCardData:
    """Return the metadata of a card."""
    data = public_data(str((record.recipe or {}).get("data") or ""))
    on_hub = [origin for origin in record.origins or () if origin.startswith(HUB_PREFIX)]
    tags = ["image-segmentation", "semantic-segmentation", "segformer", "ccsegformer"]
    if not record.is_plain:
        tags.append("criss-cross-attention" if "criss_cross" in record.config.stage_attention else "custom")
    return ModelCardData(
        base_model=public_model(on_hub[0]) if on_hub else None,
        datasets=[data.on_hub] if data.on_hub else None,
        eval_results=eval_results(record) or None,
        library_name="transformers" if record.is_plain else "ccsegformer",
        license=licence.license,
        license_name=licence.name,
        license_link=licence.link,
        metrics=["mean_iou"] if record.metrics else None,
        model_name=name.rpartition("/")[2] if record.metrics else None,
        pipeline_tag="image-segmentation",
        tags=tags,
    )


def eval_results(record: ModelRecord) -> list[EvalResult]:
    """Return the scores in the hub's form; an empty list without scores."""
    metrics = record.metrics
    if metrics is None:
        return []
    data = public_data(metrics["scored"]["data"])
    bounds = metrics["mean_iou_interval"]
    interval = f", 95% interval {bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else ""
    named = {
        "mean_iou": ("mean_iou", f"Mean IoU{interval}"),
        "mean_accuracy": ("mean_accuracy", "Mean accuracy"),
        "pixel_accuracy": ("accuracy", "Pixel accuracy"),
    }
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_type=data.slug,
            dataset_name=data.title,
            dataset_split=metrics["scored"]["split"],
            metric_type=kind,
            metric_name=title,
            metric_value=round(metrics[key], 4),
            metric_args=_protocol_facts(metrics) if key == "mean_iou" else None,
        )
        for key, (kind, title) in named.items()
    ]


def _protocol_facts(metrics: dict[str, Any]) -> dict[str, Any]:
    return {"protocol": metrics["protocol"]["name"], "images": metrics["images"]}


def write_card(folder: str | Path, name: str | None = None, license: str | None = None) -> ModelRecord:
    """Write README.md, the model card, to a model's folder, and return what it was made from.

    Args:
        folder: Folder of a run, of a conversion, or of any trained SegFormer.
        name: Name of the model on the hub; by default the folder's.
        license: Licence of weights trained from random ones, an identifier of the hub such as "cc-by-4.0".

    Raises:
        OutputError: The folder has a README.md of another origin, or cannot be written to.
        CheckpointError, DataError, RecipeError: As `read_record` and `licence_of`.
    """
    folder = Path(folder)
    path = folder / CARD
    if path.exists() and not is_own_card(path):
        raise OutputError(f"{path}: was not written by ccsegformer; move it away to have a card written")
    record = read_record(folder)
    write_atomically(path, str(make_card(record, name or folder.resolve().name, license)))
    return record


def is_own_card(path: Path) -> bool:
    """Whether a file is a card that `write_card` wrote."""
    try:
        return MARK in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
