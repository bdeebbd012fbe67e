"""Replacing modules has the same effect as in transformers' model."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d
from transformers import set_seed

from tests.models.pairs import changeable_pair, check_two_steps, logits_of
from tests.models.test_modeling import pixels

Edit = Callable[[nn.Module], object]
WIDTH, LABELS = 16, 3


def put(name: str, make: Callable[[], nn.Module]) -> Edit:
    """Return an edit that replaces a module of the head, in float64 and in the mode of the model."""
    return lambda model: model.decode_head.set_submodule(name, make().double().train(model.training))


def each(kind: type[nn.Module], edit: Edit) -> Edit:
    """Return an edit that changes every module of a class."""
    return lambda model: [edit(module) for module in list(model.modules()) if isinstance(module, kind)]


def with_statistics(norm: nn.Module) -> nn.Module:
    """Give a norm random running statistics."""
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def narrow_the_first_projection(model: nn.Module) -> None:
    head = model.decode_head
    head.linear_projections[0].proj = nn.Linear(8, 4).double()
    head.linear_fuse = nn.Conv2d(3 * WIDTH + 4, WIDTH, 1, bias=False).double()


def without_the_last_projection(model: nn.Module) -> None:
    del model.decode_head.linear_projections[3]
    model.decode_head.linear_fuse = nn.Conv2d(3 * WIDTH, WIDTH, 1, bias=False).double()


def without_bias(layer: nn.Module) -> None:
    layer.bias = None


def rms_norms(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.LayerNorm):
            model.set_submodule(name, nn.RMSNorm(module.normalized_shape).double())


BATCH_NORMS: dict[str, Edit] = {
    "group norm": put("batch_norm", lambda: nn.GroupNorm(4, WIDTH)),
    "instance norm": put("batch_norm", lambda: nn.InstanceNorm2d(WIDTH, affine=True)),
    "no norm": put("batch_norm", nn.Identity),
    "batch norm without affine": put(
        "batch_norm", lambda: with_statistics(nn.BatchNorm2d(WIDTH, affine=False))
    ),
    "batch norm without statistics": put(
        "batch_norm", lambda: nn.BatchNorm2d(WIDTH, track_running_stats=False)
    ),
    "batch norm with another epsilon": put(
        "batch_norm", lambda: with_statistics(nn.BatchNorm2d(WIDTH, eps=0.5))
    ),
    "batch norm without memory": put("batch_norm", lambda: nn.BatchNorm2d(WIDTH, momentum=None)),
    "frozen batch norm": put("batch_norm", lambda: with_statistics(FrozenBatchNorm2d(WIDTH))),
    "synchronised batch norm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "batch norm alone in training": lambda model: model.decode_head.batch_norm.train(),
    "batch norm alone in evaluation": lambda model: model.decode_head.batch_norm.eval(),
    "batch norm that scales by 0": lambda model: model.decode_head.batch_norm.weight.data.zero_(),
}
LAYERS: dict[str, Edit] = {
    "classifier without bias": put("classifier", lambda: nn.Conv2d(WIDTH, LABELS, 1, bias=False)),
    "classifier of 3 x 3": put("classifier", lambda: nn.Conv2d(WIDTH, LABELS, 3, padding=1)),
    "classifier of two layers": put(
        "classifier", lambda: nn.Sequential(nn.Conv2d(WIDTH, 8, 1), nn.ReLU(), nn.Conv2d(8, LABELS, 1))
    ),
    "fuse with bias": put("linear_fuse", lambda: nn.Conv2d(4 * WIDTH, WIDTH, 1)),
    "fuse of 3 x 3": put("linear_fuse", lambda: nn.Conv2d(4 * WIDTH, WIDTH, 3, padding=1, bias=False)),
    "fuse of 3 x 3, same": put(
        "linear_fuse", lambda: nn.Conv2d(4 * WIDTH, WIDTH, 3, padding="same", bias=False)
    ),
    "fuse of 3 x 3, valid": put("linear_fuse", lambda: nn.Conv2d(4 * WIDTH, WIDTH, 3, bias=False)),
    "fuse with padding": put("linear_fuse", lambda: nn.Conv2d(4 * WIDTH, WIDTH, 1, padding=1, bias=False)),
    "fuse with stride": put("linear_fuse", lambda: nn.Conv2d(4 * WIDTH, WIDTH, 1, stride=2, bias=False)),
    "fuse in groups": put("linear_fuse", lambda: nn.Conv2d(4 * WIDTH, WIDTH, 1, groups=4, bias=False)),
    "fuse of two layers": put(
        "linear_fuse", lambda: nn.Sequential(nn.Conv2d(4 * WIDTH, 8, 1), nn.Conv2d(8, WIDTH, 1))
    ),
    "projection without bias": lambda model: without_bias(model.decode_head.linear_projections[1].proj),
    "projection of two layers": put(
        "linear_projections.2.proj", lambda: nn.Sequential(nn.Linear(24, 8), nn.Linear(8, WIDTH))
    ),
    "a narrower projection": narrow_the_first_projection,
    "one projection fewer": without_the_last_projection,
    "no biases": each(nn.Linear, without_bias),
    "activation": put("activation", nn.GELU),
    "activation in place": put("activation", lambda: nn.ReLU(inplace=True)),
    "RMS norms": rms_norms,
}
EDITS = BATCH_NORMS | LAYERS


@pytest.mark.parametrize("what", EDITS)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_replaced_modules(what: str, training: bool) -> None:
    models = []
    for model in changeable_pair():
        set_seed(0)
        edited = EDITS[what](model.train(training))
        models.append(edited if isinstance(edited, type(model)) else model)
    check_two_steps(models)


def test_a_classifier_without_bias_on_a_large_image() -> None:
    ours, theirs = (model.float() for model in changeable_pair())
    for model in (ours, theirs):
        model.decode_head.classifier.bias = None
    image = pixels(1, 512, 640)
    torch.testing.assert_close(logits_of(ours, image), logits_of(theirs, image))
