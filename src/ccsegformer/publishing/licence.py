"""The licence that weights have because of the weights they derive from."""

import re
from typing import NamedTuple

from ccsegformer.errors import DataError
from ccsegformer.models.origins import HUB_PREFIX, RANDOM

_NVIDIA = re.compile(r"nvidia|nvlabs|(^|/)(mit|segformer)[-_.]?b[0-5]|SegFormer checkpoint ", re.IGNORECASE)
NVIDIA_LINK = "https://github.com/NVlabs/SegFormer/blob/master/LICENSE"


class Licence(NamedTuple):
    """A licence in the hub's form.

    Attributes:
        license: Identifier of the hub, such as "apache-2.0" or "other"; None if nobody has chosen one.
        name, link: Name and address of a licence that is "other".
        text: The same for people.
    """

    license: str | None
    name: str | None
    link: str | None
    text: str


def licence_of(origins: tuple[str, ...] | None, chosen: str | None = None) -> Licence:
    """Return the licence of weights with these origins.

    Args:
        origins: Where they are from (see `weight_origins`); None if unknown.
        chosen: Licence that the owner of the weights gives them, an identifier of the hub.

    Raises:
        DataError: A licence is chosen for weights that derive from others.
    """
    root = origins[-1] if origins else "weights that the folder does not name"
    if root == RANDOM:
        if chosen is None:
            return Licence(None, None, None, "No licence has been chosen for these weights.")
        return Licence(chosen, None, None, f"The weights: {chosen}. They were trained from random weights.")
    if chosen is not None:
        raise DataError(
            f"--license {chosen}: only for weights trained from random ones, but these derive from "
            f"{root.removeprefix(HUB_PREFIX)}, whose licence goes with them"
        )
    if _NVIDIA.search(root):
        return Licence(
            "other",
            "nvidia-source-code-license-segformer",
            NVIDIA_LINK,
            f"The weights derive from NVIDIA's SegFormer checkpoints. [NVIDIA's licence]({NVIDIA_LINK}) goes "
            "with them: research and evaluation only, no commercial use.",
        )
    place, link = root, None
    if root.startswith(HUB_PREFIX):
        name = root.removeprefix(HUB_PREFIX)
        link = f"https://huggingface.co/{name}"
        place = f"[{name}]({link})"
    return Licence(
        "other",
        "licence-of-the-base-model",
        link,
        f"The weights derive from {place}, and its licence goes with them. It is not recorded here.",
    )
