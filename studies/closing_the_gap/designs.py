"""The designs, each with a guess of its result that was written down before its first run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import layer_norm

from ccsegformer.models.attention.criss_cross import CrissCrossAttention, LePE
from ccsegformer.models.layer import CrissCrossSegformerLayer
from ccsegformer.ops import criss_cross_attention
from ccsegformer.training.freezing import freeze
from studies.harness import Model, Plan
from studies.options import Study


@dataclass(frozen=True)
class Design:
    """A training and the guess of its mIoU.

    The guesses are a record: do not edit them.
    """

    what: str
    guess: str
    plan: Plan


class Normalised(CrissCrossAttention):
    """Criss-cross attention with a layer norm on the queries and keys of each head."""

    def attend(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        """Apply the attention once to (batch, H W, C)."""
        grid = (hidden_states.shape[0], height, width, self.num_heads, -1)
        query, key, value = (
            projection(hidden_states).view(grid).permute(0, 3, 1, 2, 4)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = (layer_norm(each, each.shape[-1:]) for each in (query, key))
        attended = criss_cross_attention(query, key, value).permute(0, 2, 3, 1, 4).flatten(3)
        return self.o_proj(attended.flatten(1, 2))


class DetourAlone(nn.Module):
    """LePE without the attention: value projection, depthwise convolution, output projection."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.lepe = LePE(hidden_size, hidden_size, 3, padding=1, groups=hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, tokens: Tensor, height: int, width: int, **_: Any) -> tuple[Tensor, None]:
        """Map (batch, H W, C) to the same shape."""
        values = self.v_proj(tokens).unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return self.o_proj(self.lepe(values).flatten(2).transpose(1, 2)), None


class TwiceUnshared(nn.Module):
    """Two criss-cross modules with separate weights; the second sees what the first added."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.first = CrissCrossAttention(hidden_size, num_heads, 1)
        self.second = CrissCrossAttention(hidden_size, num_heads, 1)

    def forward(self, tokens: Tensor, height: int, width: int, **_: Any) -> tuple[Tensor, None]:
        """Map (batch, H W, C) to the same shape."""
        added = self.first.attend(tokens, height, width)
        return added + self.second.attend(tokens + added, height, width), None


def replace_attention(make: Callable[[int, int], nn.Module]) -> Callable[[Model], None]:
    """Return an edit that replaces every attention with `make(hidden_size, num_heads)`."""

    def edit(model: Model) -> None:
        for block in model.modules():
            if isinstance(block, CrissCrossSegformerLayer):
                replaced = block.attention
                assert isinstance(replaced, CrissCrossAttention)
                own = make(replaced.q_proj.in_features, replaced.num_heads)
                block.attention = own.apply(model._init_weights)

    return edit


def _normalise(model: Model) -> None:
    replace_attention(lambda hidden_size, heads: Normalised(hidden_size, heads, 1))(model)


def _last_twice(model: Model) -> None:
    for block in list(model.modules()):
        if (
            isinstance(block, CrissCrossAttention)
            and block.q_proj.in_features == model.config.hidden_sizes[-1]
        ):
            block.recurrence = 2


def _group_norm(model: Model) -> None:
    """Replace the decode head's batch norm with a norm over each image."""
    model.decode_head.batch_norm = nn.GroupNorm(32, model.config.decoder_hidden_size)


def _attention(*stages: str, **more: Any) -> tuple[tuple[str, Any], ...]:
    return (("attention", stages[0] if len(stages) == 1 else list(stages)), *more.items())


def from_scratch(study: Study) -> dict[str, Design]:
    """Return the designs to train from scratch, with the efficient model's recipe and budget."""
    e, c = "efficient", "criss_cross"
    designs: dict[str, tuple[str, str, dict[str, Any]]] = {
        "cross": ("criss-cross attention, R = 1", "equal: two blocks a stage see the whole image", {}),
        "cross twice": (
            "R = 2, shared weights: every block sees the whole image",
            "a little better, 0.005, at twice the projections",
            {"overrides": _attention(c, recurrence=2)},
        ),
        "cross twice, unshared": (
            "two modules in every block",
            "as twice shared; more to learn in the same steps",
            {"edits": (replace_attention(TwiceUnshared),)},
        ),
        "ccnet": (
            "CCNet's module: C/8 queries and keys, gamma from 0",
            "worse by 0.01: attention begins silent and has one head",
            {"overrides": _attention(c, projection="ccnet")},
        ),
        "normalised": (
            "queries and keys through a layer norm",
            "a little better: the validation images are larger than the crops",
            {"edits": (_normalise,)},
        ),
        "detour": (
            "plus a depthwise 3 x 3 convolution of the values (LePE)",
            "better by 0.01: the cross misses the diagonal neighbours",
            {"overrides": _attention(c, lepe=True)},
        ),
        "detour alone": (
            "that convolution without the attention: does it explain the gain?",
            "as no attention: Mix-FFN has such a convolution",
            {"edits": (replace_attention(lambda hidden_size, _: DetourAlone(hidden_size)),)},
        ),
        "cross late": (
            "efficient in stages 1 and 2, criss-cross in 3 and 4",
            "equal; most of the memory stays",
            {"overrides": _attention(e, e, c, c)},
        ),
        "cross early": (
            "criss-cross in stages 1 and 2, efficient in 3 and 4",
            "equal or better: full attention where it is cheap",
            {"overrides": _attention(c, c, e, e)},
        ),
        "efficient last": (
            "criss-cross in stages 1 to 3, efficient in 4",
            "better than cross: where it is cheapest, every block sees the whole image",
            {"overrides": _attention(c, c, c, e)},
        ),
        "last twice": (
            "criss-cross, with R = 2 in stage 4 alone",
            "as efficient last, and cheaper on large images",
            {"edits": (_last_twice,)},
        ),
        "batches of one": (
            "cross, each step's four images one at a time, so batch norm sees one",
            "0.01 lost",
            {"batch_size": 1, "accumulation": 4},
        ),
        "batches of one, group norm": (
            "the same, with group norm (32 groups) in the decode head",
            "nothing lost: scored with the statistics it was trained with",
            {"batch_size": 1, "accumulation": 4, "edits": (_group_norm,)},
        ),
        "none": ("no attention: the control", "within 0.01", {"overrides": _attention("none")}),
    }
    return {
        name: Design(what, guess, study.from_scratch(**changes))
        for name, (what, guess, changes) in designs.items()
    }


def from_efficient(study: Study) -> dict[str, Design]:
    """Return the designs that start from the trained efficient model, for a quarter of its steps."""
    late = ("efficient", "efficient", "criss_cross", "criss_cross")
    cross: dict[str, Any] = {"keep": everything}
    designs: dict[str, tuple[str, str, dict[str, Any]]] = {
        "efficient, longer": (
            "the efficient model trained further: the effect of the steps alone",
            "better by 0.01",
            {**cross, "overrides": _attention("efficient")},
        ),
        "untrained": ("projections reused, not a step of training", "0.05 lost", {**cross, "steps": 0}),
        "fresh": ("fresh projections, everything trained", "0.02 lost", {"keep": all_but_attention}),
        "fresh, frozen": (
            "fresh projections; only attention and head trained, as in the report",
            "0.03 lost",
            {"keep": all_but_attention, "freeze": freeze_the_rest},
        ),
        "reused": ("projections reused, everything trained", "nothing lost", cross),
        "reused, frozen": (
            "projections reused; only attention and head trained",
            "0.01 lost",
            {**cross, "freeze": freeze_the_rest},
        ),
        "reused, slow": (
            "projections reused, a third of the learning rate",
            "better than reused: less is forgotten",
            {**cross, "learning_rate": 3e-4},
        ),
        "fresh, fast attention": (
            "fresh projections at three times the learning rate of the rest, 3e-4",
            "between fresh and reused",
            {"keep": all_but_attention, "learning_rate": 3e-4, "factor": _attention_faster},
        ),
        "reused, detour": (
            "projections reused, LePE starting at 0",
            "as reused or a little better",
            {**cross, "overrides": _attention("criss_cross", lepe=True), "keep": _but_detour},
        ),
        "reused, twice": (
            "projections reused, R = 2",
            "worse than R = 1: the second pass was never meant",
            {**cross, "overrides": _attention("criss_cross", recurrence=2)},
        ),
        "reused, late": (
            "projections reused, criss-cross in stages 3 and 4 only",
            "as reused",
            {**cross, "overrides": _attention(*late)},
        ),
    }
    return {
        name: Design(what, guess, study.begun(**changes)) for name, (what, guess, changes) in designs.items()
    }


def everything(name: str) -> bool:
    """Keep every tensor that both models have."""
    return True


def all_but_attention(name: str) -> bool:
    """Keep everything but the attention."""
    return ".attention." not in name


def _but_detour(name: str) -> bool:
    return ".lepe." not in name


def _attention_faster(name: str) -> float:
    return 3.0 if ".attention." in name else 1.0


def freeze_the_rest(model: Model) -> None:
    """Train only the attention and the decode head."""
    freeze(model, "report", None)
