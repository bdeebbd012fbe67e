"""Learning rate and weight decay of each parameter."""

from collections import defaultdict
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ccsegformer.training.freezing import HEAD
from ccsegformer.training.recipe import OptimizerSection


def parameter_groups(model: nn.Module, optimizer: OptimizerSection) -> list[dict[str, Any]]:
    """Group the trainable parameters by `lr` and `weight_decay`, for an optimizer of torch.

    Groups and their order depend only on the model and the recipe, so that saved optimizer states fit.
    """
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm | _BatchNorm)}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = optimizer.head_learning_rate_factor if name.startswith(HEAD) else 1.0
        module, _, kind = name.rpartition(".")
        # Gamma scales the output of CCNet's attention: decay would switch it off.
        kept = module in norms or kind == "gamma" or (kind == "bias" and not optimizer.decay_biases)
        groups[factor, kept].append(parameter)
    return [
        {
            "params": groups[factor, kept],
            "lr": factor * optimizer.learning_rate,
            "weight_decay": 0.0 if kept else optimizer.weight_decay,
        }
        for factor, kept in sorted(groups)
    ]
