"""Class names, their colours and the ignore index."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccsegformer.config.class_names import comparable_names
from ccsegformer.data.palette import Color, default_palette
from ccsegformer.errors import DataError
from ccsegformer.files import write_atomically

KEYS = ("names", "ignore_index", "palette", "map", "reduce_labels", "colors")
"""Keys of a classes.json."""

MAX_LABEL = 65535  # masks have at most 16 bits per pixel


@dataclass(frozen=True)
class Classes:
    """Classes of a data set: label `i` of a mask is `names[i]`, drawn in `palette[i]` (8-bit RGB).

    Pixels with the label `ignore_index` are neither trained on nor scored. An empty palette becomes
    `default_palette`.

    With a `label_map`, masks hold other ids, which become labels when they are read: pairs of a raw id and
    its label, or `ignore_index`. Raw ids that it does not list are errors, except `ignore_index` itself.

    A single name is a class against a background: `names` becomes ("background", name), with the labels 0 and
    1, `one_label` is true, and a palette of one colour gets black before it. A model trained on these has one
    logit, as transformers' with `num_labels=1`.

    With `colors`, masks are pictures: pairs of an 8-bit RGB colour and its label, or `ignore_index`. Colours
    that it does not list are errors.

    Raises:
        DataError: Missing or repeated names, an ignore index that is also a class, a palette of another
            length or with invalid colours, a label map or colours with a wrong id, colour or label, or both.
    """

    names: tuple[str, ...]
    palette: tuple[Color, ...] = ()
    ignore_index: int = 255
    label_map: tuple[tuple[int, int], ...] = ()
    colors: tuple[tuple[Color, int], ...] = ()
    one_label: bool = False

    def __post_init__(self) -> None:
        if not self.names:
            raise DataError("there are no class names")
        if len(self.names) == 1:
            self._add_background()
        if self.one_label and len(self.names) != 2:
            raise DataError(f"one label has a background and one class, not {len(self.names)} classes")
        for name in self.names:
            if not isinstance(name, str) or not name.strip():
                raise DataError(f"class names must be words, but one is {name!r}")
            if self.names.count(name) > 1:
                raise DataError(f"class name {name!r} occurs more than once")
        if not len(self.names) <= self.ignore_index <= MAX_LABEL:
            raise DataError(
                f"ignore_index {self.ignore_index} must lie outside the classes, "
                f"between {len(self.names)} and {MAX_LABEL}"
            )
        if not self.palette:
            object.__setattr__(self, "palette", default_palette(len(self.names)))
        if len(self.palette) != len(self.names):
            raise DataError(f"palette has {len(self.palette)} colours for {len(self.names)} classes")
        for color in (*self.palette, *(color for color, _ in self.colors)):
            if len(color) != 3 or not all(0 <= value <= 255 for value in color):
                raise DataError(f"palette colours are three numbers between 0 and 255, not {list(color)}")
        object.__setattr__(self, "label_map", tuple(sorted(self.label_map)))
        for raw, label in self.label_map:
            self._check_mapped(raw, label)
        object.__setattr__(self, "colors", tuple(sorted(self.colors)))
        self._check_colors()

    def _add_background(self) -> None:
        [name] = self.names
        is_taken = isinstance(name, str) and name.strip().casefold() == "background"
        object.__setattr__(self, "names", ("other" if is_taken else "background", name))
        object.__setattr__(self, "one_label", True)
        if len(self.palette) == 1:
            object.__setattr__(self, "palette", ((0, 0, 0), *self.palette))

    def _check_mapped(self, raw: int, label: int) -> None:
        """Check an entry of the label map."""
        if sum(raw == other for other, _ in self.label_map) > 1:
            raise DataError(f"map: id {raw} is given twice")
        if not 0 <= raw <= MAX_LABEL:
            raise DataError(f"map: {raw} is not an id of a mask, 0 to {MAX_LABEL}")
        if label != self.ignore_index and not 0 <= label < len(self.names):
            raise DataError(
                f"map: {raw} becomes {label}, but the classes are 0-{len(self) - 1} "
                f"(ignore_index {self.ignore_index})"
            )
        if raw == self.ignore_index != label:
            raise DataError(
                f"map: {raw} becomes class {label}, but it is the ignore_index; choose another ignore_index"
            )

    def _check_colors(self) -> None:
        """Check that colours are given once and have labels, and that there is no map beside them."""
        if self.colors and self.label_map:
            raise DataError("colors: masks in colours hold no ids; leave out 'map' and 'reduce_labels'")
        labels: dict[Color, int] = {}
        for color, label in self.colors:
            if color in labels:
                whose = " and ".join(repr(self._name(one)) for one in (labels[color], label))
                raise DataError(f"colors: {list(color)} is given twice, for {whose}")
            if label != self.ignore_index and not 0 <= label < len(self.names):
                raise DataError(
                    f"colors: {list(color)} becomes {label}, but the classes are 0-{len(self) - 1}"
                )
            labels[color] = label

    def _name(self, label: int) -> str:
        return self.names[label] if 0 <= label < len(self.names) else "ignore"

    def __len__(self) -> int:
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """Names of a model's logits, in the form of a transformers configuration: one for one label."""
        return dict(enumerate(self.names[self.one_label :]))


def check_class_order(one: Sequence[str], other: Sequence[str], first: str, second: str) -> None:
    """Check that two lists with the same class names have them in the same order; other lists pass.

    Raises:
        DataError: they do not; the message calls their owners `first` and `second`.
    """
    if set(one) == set(other) and tuple(one) != tuple(other):
        place = next(index for index, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
        raise DataError(
            f"class {place} is {one[place]!r} for {first} but {other[place]!r} for {second}: "
            "the same names in another order"
        )


def classes_of_model(labels: Mapping[int, object], ignore_index: int, name: str | Path) -> Classes:
    """Return the classes that a transformers configuration names in `id2label`, in default colours.

    Repeated names get their label behind them, as in "N/A (12)"; a blank one becomes "LABEL_12".

    Raises:
        DataError: The labels are not 0, 1, 2, ...; the message begins with `name`.
    """
    if sorted(labels) != list(range(len(labels))):
        raise DataError(
            f"{name}: id2label in its configuration names {min(labels)}-{max(labels)}, but its {len(labels)} "
            f"classes are 0-{len(labels) - 1}; correct config.json, or name the "
            "classes in the order of the model's outputs with --classes FILE"
        )
    names: list[str] = []
    for label in range(len(labels)):
        given = labels[label]
        text = str(given).strip() if given is not None else ""
        wanted = text or f"LABEL_{label}"
        while wanted in names:
            wanted = f"{wanted} ({label})"
        names.append(wanted)
    return Classes(tuple(names), ignore_index=max(ignore_index, len(names)))


def describe_one_class(pixels: Sequence[int], ignored: int, classes: Classes, masks: str) -> str:
    """Say what masks with at most one class hold, and what to correct; "" if they hold more.

    Args:
        pixels: Pixels of each class.
        ignored: Ignored pixels.
        classes: Classes of the masks.
        masks: Name of the masks for the message, such as "the first 12 training masks".
    """
    found = [label for label, count in enumerate(pixels) if count]
    if len(found) > 1:
        return ""
    index, hold = classes.ignore_index, "hold" if masks.endswith("s") else "holds"
    if not found:
        return (
            f"{masks} {hold} no labelled pixel, only ignore_index {index} or no data; if {index} marks a "
            f"class, save it as a label from 0 to {len(classes) - 1}"
        )
    [label] = found
    text = f"{masks} {hold} one class only, {classes.names[label]!r} (label {label})"
    if not ignored:
        return f"{text}, in every pixel; check that the masks hold class ids, 0 to {len(classes) - 1}"
    share, other = ignored / (ignored + pixels[label]), 1 if label == 0 else 0
    return (
        f"{text}; {100 * share:.3g}% of their pixels are ignored (ignore_index {index}): if {index} marks "
        f"{classes.names[other]!r}, save it as {other}, or give classes.json another ignore_index and a map"
    )


def list_names(names: Sequence[str], most: int = 20) -> str:
    """Join names by commas, `most` of them at most."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def describe_other_names(one: Sequence[str], other: Sequence[str]) -> str:
    """Say which class has other names in two lists, or "". Names that say nothing fit all."""
    pairs = zip(comparable_names(one), comparable_names(other), strict=True)
    differing = [label for label, (a, b) in enumerate(pairs) if a and b and a != b]
    if not differing:
        return ""
    first = differing[0]
    return (
        f"{len(differing)} of {len(one)} classes have other names in the model than in the data, such as "
        f"class {first}: {one[first]!r} and {other[first]!r}; classes are matched by number"
    )


def read_classes(path: str | Path) -> Classes:
    """Read `classes.json`: `names`, `ignore_index` and optionally `palette`, `map` and `colors`.

    Other keys are ignored, unless one looks like these misspelt.

    `map` gives the class, by number or name, of each raw id in the masks, or "ignore". With
    `"reduce_labels": true`, as in SegFormer's image processor, 0 is ignored and each other id is one above
    its class. `colors` gives the class of each colour, such as "128 0 0", or is true where the palette does.

    Raises:
        DataError: The file cannot be read or is invalid; the message names file and key.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise DataError(f"{path}: not valid JSON: {error}") from error
    example = '{"names": ["road", "sky"], "ignore_index": 255}'
    if not isinstance(content, dict):
        raise DataError(f"{path}: must hold an object such as {example}")
    for key in ("names", "ignore_index"):
        if key not in content:
            raise DataError(f"{path}: key {key!r} is missing; expected something like {example}")
    for key in content.keys() - {*KEYS}:
        if close := difflib.get_close_matches(key.removeprefix("label_"), KEYS):
            raise DataError(f"{path}: unknown key {key!r}; did you mean {close[0]!r}?")
    names, ignore_index, palette = content["names"], content["ignore_index"], content.get("palette", [])
    if not isinstance(names, list):
        raise DataError(f"{path}: 'names' must be a list of class names, not {names!r}")
    if type(ignore_index) is not int:
        raise DataError(f"{path}: 'ignore_index' must be a whole number, not {ignore_index!r}")
    if not isinstance(palette, list) or not all(_is_color(color) for color in palette):
        raise DataError(f"{path}: 'palette' must be a list of [red, green, blue], each between 0 and 255")
    try:
        plain = Classes(tuple(names), tuple((red, green, blue) for red, green, blue in palette), ignore_index)
        colors = _colors(content, plain)
        return replace(_drawn(plain, colors, palette), label_map=_label_map(content, plain), colors=colors)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def write_classes(classes: Classes, path: str | Path) -> None:
    """Write `classes.json` for `read_classes`."""
    content: dict[str, Any] = {
        "names": list(classes.id2label.values()),
        "ignore_index": classes.ignore_index,
        "palette": [list(color) for color in classes.palette],
    }
    if classes.label_map:
        content["map"] = {
            str(raw): "ignore" if label == classes.ignore_index else label for raw, label in classes.label_map
        }
    if classes.colors:
        content["colors"] = {
            " ".join(map(str, color)): "ignore" if label == classes.ignore_index else label
            for color, label in classes.colors
        }
    write_atomically(path, json.dumps(content, ensure_ascii=False) + "\n")


def colorize(labels: NDArray[np.integer], classes: Classes) -> NDArray[np.uint8]:
    """Draw labels (H, W) as 8-bit RGB (H, W, 3) in the colours of the classes. Ignored pixels are black.

    Raises:
        DataError: A label that is neither a class nor the ignore index.
    """
    ignored = labels == classes.ignore_index
    unknown = ((labels < 0) | (labels >= len(classes))) & ~ignored
    if unknown.any():
        raise DataError(f"label {labels[unknown][0]} is outside the classes 0-{len(classes) - 1}")
    table = np.array([*classes.palette, (0, 0, 0)], dtype=np.uint8)
    return table[np.where(ignored, len(classes), labels)]


def _label_map(content: dict[str, Any], classes: Classes) -> tuple[tuple[int, int], ...]:
    """Return the label map of a classes.json."""
    given, reduced = content.get("map"), content.get("reduce_labels", False)
    if type(reduced) is not bool:
        raise DataError(f"'reduce_labels' must be true or false, not {reduced!r}")
    if reduced and given is not None:
        raise DataError("'reduce_labels' is a map; give one of it and 'map'")
    if reduced and classes.one_label:
        raise DataError("'reduce_labels' ignores 0, the background of the only class; use 'map'")
    if reduced:
        return ((0, classes.ignore_index), *((label + 1, label) for label in range(len(classes))))
    if given is None:
        return ()
    example = '{"0": "ignore", "7": "road"}'
    if not isinstance(given, dict) or not given:
        raise DataError(f"'map' must give the class of each id in the masks, such as {example}")
    pairs = []
    for raw, target in given.items():
        if not raw.isascii() or not raw.isdecimal():
            raise DataError(f"'map' must have ids of masks as keys, such as {example}, not {raw!r}")
        pairs.append((int(raw), _mapped_class("map", raw, target, classes)))
    return tuple(pairs)


def _colors(content: dict[str, Any], classes: Classes) -> tuple[tuple[Color, int], ...]:
    """Return the colours of the masks that a classes.json lists."""
    given = content.get("colors", False)
    if given is False:
        return ()
    if given is True:
        if not content.get("palette"):
            raise DataError("'colors' is true, so masks are in the colours of 'palette', which is missing")
        return tuple((color, label) for label, color in enumerate(classes.palette))
    example = '{"0 0 0": "ignore", "128 0 0": "road"}'
    if not isinstance(given, dict) or not given:
        raise DataError(f"'colors' must be true or give the class of each colour, such as {example}")
    pairs = []
    for text, target in given.items():
        levels = text.split()
        if len(levels) != 3 or not all(level.isascii() and level.isdecimal() for level in levels):
            raise DataError(f"'colors' must have colours as keys, such as {example}, not {text!r}")
        red, green, blue = map(int, levels)
        pairs.append(((red, green, blue), _mapped_class("colors", text, target, classes)))
    return tuple(pairs)


def _drawn(classes: Classes, colors: Sequence[tuple[Color, int]], palette: object) -> Classes:
    """Return classes that have no palette in the first colours of their masks, if every class has one."""
    first = {label: color for color, label in reversed(colors)}
    if palette or not all(label in first for label in range(len(classes))):
        return classes
    return replace(classes, palette=tuple(first[label] for label in range(len(classes))))


def _mapped_class(key: str, raw: str, target: object, classes: Classes) -> int:
    """Return the label of a class given by its number or name, or of "ignore"."""
    if target == "ignore":
        return classes.ignore_index
    if type(target) is int:
        return target
    if isinstance(target, str) and target in classes.names:
        return classes.names.index(target)
    near = difflib.get_close_matches(str(target), [*classes.names, "ignore"], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "use a class's number or name, or 'ignore'"
    raise DataError(f"{key!r} gives {raw} the class {target!r}, which does not exist; {hint}")


def _is_color(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(level) is int and 0 <= level <= 255 for level in value)
    )
