"""Compare class names of models and data."""

import re
from collections.abc import Sequence


def comparable_names(names: Sequence[str]) -> list[str]:
    """Return names without case and outer blanks; "" for those that say nothing, such as LABEL_0 or 1."""
    plain = [name.strip().casefold() for name in names]
    return ["" if re.fullmatch(r"(label|class)?[ _-]?\d*", name) else name for name in plain]
