"""The sections of a model card, in Markdown."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from ccsegformer.models.attention import ATTENTIONS
from ccsegformer.models.origins import RANDOM
from ccsegformer.publishing.names import public_data, public_file, public_model
from ccsegformer.publishing.record import ModelRecord


def describe_model(record: ModelRecord) -> str:
    """Say what the model is, in a paragraph and a table."""
    config = record.config
    stages = config.stage_attention
    labels = [ATTENTIONS[stage].label for stage in stages]
    attention = f"{labels[0]} in every stage" if len({*stages}) == 1 else f"{', '.join(labels)} by stage"
    size = f"SegFormer-{config.published_size.upper()}" if config.published_size else "SegFormer"
    kind = (
        "A plain SegFormer: transformers loads it alone."
        if record.is_plain
        else "A SegFormer with an attention that transformers lacks: to load it, install ccsegformer "
        "(`pip install ccsegformer`)."
    )
    bands = "8-bit RGB" if config.num_channels == 3 else f"{config.num_channels} bands"
    rows = [
        ("Network", f"{size}, {record.parameters / 1e6:.2f} million parameters"),
        ("Attention", attention),
        *([("Recurrence", str(config.recurrence))] if config.recurrence > 1 else []),
        ("Input", f"{bands}, any size"),
        ("Classes", f"{len(record.classes)}: {', '.join(map(escape, record.classes.names[:20]))}"
         + (", ..." if len(record.classes) > 20 else "")),
        ("Weights from", _weights_from(record)),
    ]  # fmt: skip
    return f"Labels every pixel of an image. {kind}\n\n{_markdown_table(('property', 'value'), rows)}"


def describe_use(record: ModelRecord, name: str) -> str:
    """Show how to load the model."""
    python = f'''from ccsegformer import load_model, predict_labels

model, classes = load_model("{name}")
labels = predict_labels(model, image)  # uint8 ({record.config.num_channels}, H, W) to class ids (H, W)'''
    shell = f"""ccsegformer predict {name} photograph.jpg --output labelled
ccsegformer predict {name} scene.tif --output map.tif"""
    parts = ["## How to load it"]
    if record.is_plain and record.config.num_channels == 3 and record.config.num_labels > 1:
        parts.append(f'''```python
from transformers import pipeline

segment = pipeline("image-segmentation", model="{name}")
regions = segment("photograph.jpg")  # a mask for each class
```

With `pip install ccsegformer`, also for GeoTIFFs of any size:''')
    else:
        parts.append("With `pip install ccsegformer`:")
    if record.config.band_means is not None:
        python = python.replace("uint8 ", "")
        shell = shell.partition("\n")[2]
    return "\n\n".join([*parts, f"```sh\n{shell}\n```", f"```python\n{python}\n```"])


def describe_data(record: ModelRecord) -> str:
    """Say what the model was trained on, with the labelled pixels of each class."""
    if record.conversion is not None:
        images = public_file(str(record.conversion["images"]))
        return (
            f"## Data\n\nConverted with {record.conversion['files']} unlabelled images "
            f"(`{images}`) by imitating the model that it was converted from."
        )
    if record.recipe is None:
        return "## Data\n\nThis folder does not record what the model was trained on."
    data = public_data(str(record.recipe.get("data") or ""))
    title = f"[{data.on_hub}](https://huggingface.co/datasets/{data.on_hub})" if data.on_hub else data.title
    lines = [f"{title}, split `training`" + (f", {record.samples:,} samples" if record.samples else "")]
    if data.bands:
        lines.append(f"bands {data.bands}, in this order")
    if record.config.band_means is not None and record.config.band_stds is not None:
        means, stds = (
            ", ".join(f"{value:.4g}" for value in of)
            for of in (record.config.band_means, record.config.band_stds)
        )
        lines.append(f"normalised by their own statistics: mean {means}; standard deviation {stds}")
    text = "## Data\n\n" + "; ".join(lines) + "."
    labels = (record.log or {}).get("labels")
    if labels and (total := sum(labels["pixels"].values()) + labels["ignored_pixels"]):
        rows = [(escape(name), f"{count / total:.2%}") for name, count in labels["pixels"].items()]
        rows.append(("ignored", f"{labels['ignored_pixels'] / total:.2%}"))
        table = _markdown_table(("class", "pixels"), rows, right=1)
        text += f"\n\nShares of the pixels seen in training:\n\n{table}"
    return text


def describe_training(record: ModelRecord) -> str:
    """Say how the model was trained, with its recipe."""
    if record.conversion is not None:
        steps, size = record.conversion["steps"], record.conversion["size"]
        return (
            f"## Training\n\n`ccsegformer convert`: {steps} steps of distillation on crops of {size} pixels."
        )
    if record.recipe is None:
        return ""
    facts = []
    if log := record.log:
        facts.append(f"{log['steps']:,} steps of {_counted(log['global_batch'], 'image')}")
        processes = "1 process" if log["processes"] == 1 else f"{log['processes']} processes"
        facts.append(f"{_duration(log['seconds'])} in {processes} on `{log['device']}`")
        if log["loss"]:
            facts.append(f"loss {log['loss'][0][1]:.3f} at first, {log['loss'][-1][1]:.3f} at last")
    text = "## Training\n\n" + (f"{'; '.join(facts)}.\n\n" if facts else "")
    recipe = yaml.safe_dump(public_recipe(record.recipe), sort_keys=False, allow_unicode=True)
    return text + (
        "<details><summary>Recipe, for <code>ccsegformer train</code></summary>\n\n"
        f"```yaml\n{recipe}```\n\n</details>"
    )


def public_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe whose data and pretrained weights are named without folders."""
    public = dict(recipe)
    if data := recipe.get("data"):
        known = public_data(str(data))
        own = data if data == known.slug else known.title
        public["data"] = f"hf://datasets/{known.on_hub}" if known.on_hub else own
    model = recipe.get("model") or {}
    pretrained = model.get("pretrained")
    if pretrained and not re.fullmatch(r"[\w.-]+/[\w.-]+", pretrained):
        public["model"] = {**model, "pretrained": public_model(pretrained)}
    return public


def describe_scores(record: ModelRecord) -> str:
    """Give the scores with their protocol, and a table of the classes."""
    metrics = record.metrics
    if metrics is None:
        seen = (record.log or {}).get("validation")
        during = ""
        if seen:
            best = max(score for _, score in seen)
            during = f" During training, the best mean IoU was {best:.3f}, which is no evaluation."
        agreed = _agreement(record)
        return f"## Scores\n\n**Not evaluated.** No scores of these weights are recorded.{during}{agreed}"
    scored, protocol = metrics["scored"], metrics["protocol"]
    data, bounds = public_data(scored["data"]), metrics["mean_iou_interval"]
    interval = (
        f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds
        else f"none for {metrics['images']} images; 10 are needed"
    )  # fmt: skip
    rows = [
        ("Mean IoU", f"**{metrics['mean_iou']:.3f}**"),
        ("95% interval, images resampled", interval),
        ("Mean accuracy", f"{metrics['mean_accuracy']:.3f}"),
        ("Pixel accuracy", f"{metrics['pixel_accuracy']:.3f}"),
        ("Mean of the images' own mean IoU", f"{metrics['mean_image_iou']:.3f}"),
        ("Mean IoU, absent classes as 0 (devkit)", f"{metrics['devkit_mean_iou']:.3f}"),
    ]
    known = [(name, of) for name, of in metrics["per_class"].items() if of["iou"] is not None]
    classes = [
        (escape(name), f"{of['iou']:.3f}", _score_text(of["accuracy"]), f"{of['pixels']:,}")
        for name, of in sorted(known, key=lambda row: row[1]["iou"])
    ]
    absent = [name for name, of in metrics["per_class"].items() if of["iou"] is None]
    lines = [
        "## Scores",
        f"{data.title}, split `{scored['split']}`, {_counted(metrics['images'], 'image')}.",
        *([f"**Warning:** {escape(_without_place(metrics['warning']))}."] if metrics.get("warning") else []),
        _markdown_table(("score", "value"), rows, right=1),
        f"Protocol `{protocol['name']}`: {protocol['summary']}. Logits are resized to the image's original "
        "size before the class is chosen; one confusion matrix counts all images; mean IoU is over the "
        f"classes in truth or prediction. Engine {protocol['engine']} on {protocol['device']}, "
        f"{protocol['precision']}.",
        _markdown_table(("class", "IoU", "accuracy", "true pixels"), classes, right=3),
    ]
    if absent:
        lines.append(f"In neither truth nor prediction: {', '.join(map(escape, absent))}.")
    lines.append(_agreement(record).strip())
    return "\n\n".join(filter(None, lines))


def describe_limits(record: ModelRecord) -> str:
    """List what the records say against the model."""
    recipe, log, metrics = record.recipe or {}, record.log or {}, record.metrics
    limits = []
    if unseen := (log.get("labels") or {}).get("classes_in_no_mask"):
        limits.append(f"Occur in no training mask, so were not learned: {', '.join(map(escape, unseen))}.")
    if metrics is not None:
        limits.append("The scores are of one training with one seed. The interval says how much the choice "
                      "of images matters, not the seed, nor other data.")  # fmt: skip
        validation = recipe.get("validation") or {}
        chosen = validation.get("keep_best") or validation.get("patience")
        scored = metrics["scored"]
        same = _same_data(str(recipe.get("data")), scored["data"])
        if scored["split"] == "training" and same:
            limits.append(
                "**The images scored are those of the training**: the scores say nothing of others."
            )
        elif chosen and scored["split"] == "validation" and same:
            limits.append("The images scored also chose the weights or the length of the training, so the "
                          "scores are too kind.")  # fmt: skip
    else:
        limits.append("How good it is has not been measured.")
    sizes = [size for step in recipe.get("transforms") or () for size in step.get("sizes") or ()]
    if sizes:
        crops = " or ".join(str(size) for size in sorted({*sizes}))
        limits.append(f"It was trained on crops of {crops} pixels. On much larger images, use windows "
                      "(a protocol with `window`; `ccsegformer predict` for scenes).")  # fmt: skip
    limits.append("Other cameras, places, seasons and resolutions than those of the data are untested. "
                  "Probabilities are not calibrated.")  # fmt: skip
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def escape(text: str) -> str:
    """Return text that Markdown and HTML show as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#~$&])", r"\\\1", " ".join(str(text).split()))


def _weights_from(record: ModelRecord) -> str:
    if not record.origins:
        return "not recorded"
    names = [RANDOM if origin == RANDOM else f"`{public_model(origin)}`" for origin in record.origins]
    return ", which is from ".join(names)


def _agreement(record: ModelRecord) -> str:
    """Give the agreement of a converted model with its teacher."""
    stages = (record.conversion or {}).get("stages") or {}
    agreement = (stages.get("distilled") or {}).get("agreement")
    if not agreement:
        return ""
    return (
        f" {agreement['pixels']:.1%} of the pixels of {agreement['images']} images held back have the class "
        "that the original model gives them."
    )


def _same_data(one: str, other: str) -> bool:
    return one.partition("?")[0].rstrip("/") == other.partition("?")[0].rstrip("/")


def _without_place(warning: str) -> str:
    """Leave out the folder that a warning begins with."""
    return warning.partition(": ")[2] or warning


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _score_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> str:
    """Return a Markdown table whose last `right` columns are aligned to the right."""
    rules = ["---"] * (len(head) - right) + ["---:"] * right
    lines = [head, rules, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
