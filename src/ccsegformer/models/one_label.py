"""Models of one label, which give a single logit x: the label where x > 0, background elsewhere.

They are models of two classes whose first logit is 0: softmax (0, x) is (1 - sigmoid x, sigmoid x), and the
cross entropy of (0, x) is the binary cross entropy of x.
"""

from torch import Tensor
from torch.nn.functional import pad


def with_background(logits: Tensor) -> Tensor:
    """Return a single logit (batch, 1, h, w) as two, (0, x), and other logits (batch, K, h, w) unchanged."""
    return pad(logits, (0, 0, 0, 0, 1, 0)) if logits.shape[1] == 1 else logits


def class_count(num_labels: int | None) -> int | None:
    """Return the classes that a model of so many labels tells apart: two for one label; None if unknown."""
    return 2 if num_labels == 1 else num_labels
