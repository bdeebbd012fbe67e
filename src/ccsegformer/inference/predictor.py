"""Label image files with a trained model."""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from ccsegformer.data.images import read_image
from ccsegformer.data.labels import Classes, colorize, read_classes
from ccsegformer.errors import DataError, OutputError
from ccsegformer.evaluation.evaluate import predict_labels
from ccsegformer.files import write_atomically
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation, load_trained


def load_model(
    name_or_path: str | Path, *, device: str | torch.device | None = None
) -> tuple[CrissCrossSegformerForSemanticSegmentation, Classes]:
    """Load a trained model for inference, with its classes.

    `name_or_path` is a folder or a hub name. The classes are those of `classes.json` in the folder, else the
    configuration's labels in the default colours. `device` is CUDA where there is a GPU, else the CPU.

    Raises:
        CheckpointError: not a SegFormer, or one with parts that were never trained, such as an encoder alone.
        DataError: `classes.json` is wrong, or does not have one class for each of the model's.
    """
    model = load_trained(str(name_or_path))
    listing = Path(name_or_path) / "classes.json"
    names = tuple(model.config.id2label[index] for index in range(model.config.num_labels))
    ignore_index = max(model.config.semantic_loss_ignore_index, len(names))
    classes = read_classes(listing) if listing.is_file() else Classes(names, ignore_index=ignore_index)
    if len(classes) != len(names):
        raise DataError(f"{listing}: {len(classes)} classes for a model of {len(names)}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device), classes


def predict_files(
    model: CrissCrossSegformerForSemanticSegmentation,
    classes: Classes,
    images: Sequence[str | Path],
    output: str | Path,
    *,
    progress: bool = False,
) -> list[tuple[Path, Path]]:
    """Label images one by one, and give back the two files written for each.

    `NAME.png` has the class ids at the image's own size (palette PNG in the classes' colours; 16-bit grey for
    more than 256 classes) and `NAME_overlay.png` the image with the colours laid over it. A folder stands for
    the images directly in it. Each file appears whole, and replaces one of the same name in `output`.

    Raises:
        DataError: before anything is written: a missing file, a folder without images, or two images whose
            outputs have the same name; later: an image that cannot be read.
        OutputError: an output that would replace one of the images (before anything is written), or that
            cannot be written.
    """
    files = list(_expand(images))
    targets = [_targets(file, Path(output)) for file in files]
    _refuse_collisions(files, targets)
    jobs = list(zip(files, targets, strict=True))
    for file, (labels_path, overlay_path) in track(jobs, "Predicting", disable=not progress):
        image = read_image(file)
        labels = predict_labels(model, image, name=str(file)).numpy()
        write_atomically(labels_path, encode_labels(labels, classes))
        overlay = image.permute(1, 2, 0).numpy() // 2 + colorize(labels, classes) // 2
        write_atomically(overlay_path, _png(Image.fromarray(overlay)))
    return targets


def encode_labels(labels: NDArray[np.integer], classes: Classes) -> bytes:
    """Class ids (H, W) as a PNG: with the classes' palette, or in 16-bit grey for more than 256 classes."""
    if len(classes) > 256:
        return _png(Image.fromarray(labels.astype(np.uint16)))
    picture = Image.fromarray(labels.astype(np.uint8)).convert("P")
    picture.putpalette([level for color in classes.palette for level in color])
    return _png(picture)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _expand(images: Iterable[str | Path]) -> Iterator[Path]:
    """The image files themselves, and for a folder those directly in it, by name."""
    for path in map(Path, images):
        if not path.exists():
            raise DataError(f"{path}: no such image")
        if path.is_dir():
            known = Image.registered_extensions()
            found = [p for p in path.iterdir() if p.suffix.lower() in known and not p.name.startswith(".")]
            if not found:
                raise DataError(f"{path}: no images in this folder")
            yield from sorted(found)
        else:
            yield path


def _targets(image: Path, output: Path) -> tuple[Path, Path]:
    return output / f"{image.stem}.png", output / f"{image.stem}_overlay.png"


def _refuse_collisions(images: Sequence[Path], targets: Sequence[tuple[Path, Path]]) -> None:
    sources = {image.resolve() for image in images}
    writers: dict[Path, Path] = {}
    for image, paths in zip(images, targets, strict=True):
        for path in paths:
            if path in writers:
                raise DataError(f"{image}: would be written to {path}, as {writers[path]} is; rename one")
            if path.resolve() in sources:
                raise OutputError(f"{path}: would replace an image; choose another output folder")
            writers[path] = image
