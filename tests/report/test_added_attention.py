"""An attention added to the registry works in models, checkpoints, recipes, commands and reports."""

import io
from typing import Any

import pytest
import torch
import typer
from rich.console import Console
from torch import Tensor, nn
from transformers import initialization

from ccsegformer.cli._arguments import attentions_or_usage_error
from ccsegformer.errors import RecipeError
from ccsegformer.labelling.budget import parse_memory, window_for_memory
from ccsegformer.labelling.engine import open_engine
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
from ccsegformer.models.attention import ATTENTIONS, Attention
from ccsegformer.models.modeling_ccsegformer import load_pretrained
from ccsegformer.report.figures import class_scores, image_differences, image_scores, loss_curves
from ccsegformer.report.page import render_page
from ccsegformer.report.table import print_table
from ccsegformer.training.recipe import load_recipe

SIZES = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_attention_heads": (1, 1, 1, 1)}


class MeanAttention(nn.Module):
    """Adds the mean of all tokens, projected, times a parameter that starts at a half."""

    def __init__(self, config: Any, stage: int) -> None:
        super().__init__()
        width = config.hidden_sizes[stage]
        self.projection = nn.Linear(width, width)
        self.strength = nn.Parameter(torch.empty(1))

    def forward(self, hidden_states: Tensor, height: int, width: int, **_: Any) -> tuple[Tensor, None]:
        mean = self.strength * self.projection(hidden_states).mean(dim=1, keepdim=True)
        return mean.expand_as(hidden_states), None

    def set_initial_weights(self) -> None:
        initialization.constant_(self.strength, 0.5)


@pytest.fixture(autouse=True)
def token_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Attention("Token mean", "#123456", "#abcdef", "^", MeanAttention)
    monkeypatch.setitem(ATTENTIONS, "token_mean", entry)


def make_model(attention: Any) -> CrissCrossSegformerForSemanticSegmentation:
    config = CrissCrossSegformerConfig(**SIZES, decoder_hidden_size=16, num_labels=3, attention=attention)
    return CrissCrossSegformerForSemanticSegmentation(config)


def test_it_trains() -> None:
    model = make_model(["token_mean", "efficient", "criss_cross", "none"])
    attention = model.segformer.stages[0].blocks[0].attention
    assert isinstance(attention, MeanAttention)
    pixels, labels = torch.randn(1, 3, 64, 64), torch.randint(3, (1, 64, 64))
    model(pixel_values=pixels, labels=labels).loss.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in attention.parameters())


def test_it_replaces_another_and_is_saved(tmp_path, capsys) -> None:
    make_model("efficient").save_pretrained(tmp_path / "efficient")
    model, summary = load_pretrained(str(tmp_path / "efficient"), attention="token_mean")
    assert summary.new_attention == (0, 1, 2, 3)
    assert "attention.projection" in capsys.readouterr().err
    assert {
        block.attention.strength.item() for stage in model.segformer.stages for block in stage.blocks
    } == {0.5}
    model.save_pretrained(tmp_path / "mean")
    again, summary = load_pretrained(str(tmp_path / "mean"))
    assert not summary.new and not summary.dropped
    assert again.config.attention == "token_mean"


def test_it_runs_in_pytorch_where_the_graph_does_not_know_it() -> None:
    engine = open_engine(make_model("token_mean").eval())
    assert engine.name == "torch"
    assert "MeanAttention" in engine.note
    assert torch.isfinite(engine(torch.zeros(1, 3, 64, 64))).all()


def test_a_scene_s_window_is_chosen_for_it() -> None:
    config = CrissCrossSegformerConfig.mit("b0", attention="token_mean")
    assert window_for_memory(config, parse_memory("4GB")) > 256


def test_recipes_take_it_and_messages_name_it(tmp_path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("training: {steps: 1}\n")
    assert load_recipe(path, ["model.attention=token_mean"]).model.attention == "token_mean"
    mixed = ("none", "token_mean", "efficient", "token_mean")
    assert load_recipe(path, [f"model.attention=[{', '.join(mixed)}]"]).model.attention == mixed
    for wrong in ("token_meen", "[none, token_meen, none, none]"):
        with pytest.raises(RecipeError, match=r"model\.attention.* did you mean 'token_mean'"):
            load_recipe(path, [f"model.attention={wrong}"])
    with pytest.raises(ValueError, match=r"attention must be one of .*token_mean"):
        CrissCrossSegformerConfig(attention="token_meen")


def test_the_command_line_takes_it() -> None:
    assert attentions_or_usage_error(None) == ["efficient", "criss_cross", "token_mean"]
    assert attentions_or_usage_error(["token_mean"]) == ["token_mean"]
    for wrong in ("token_meen", "none"):
        with pytest.raises(typer.BadParameter, match=f"'{wrong}' is not one of .*token_mean"):
            attentions_or_usage_error([wrong])


def test_the_report_shows_it(make_results, make_examples) -> None:
    results = make_results({"token_mean": 0.9, "efficient": 0.8, "none": 0.6})
    assert results["verdict"]["headline"].startswith("Token mean attention is ahead of ")
    screen = io.StringIO()
    print_table(results, Console(file=screen, width=100, color_system=None))
    assert "Token mean" in screen.getvalue()
    page = render_page(results, make_examples(results))
    assert page.count("--token-mean: #123456;") == 2  # on screen and in print
    assert page.count("--token-mean: #abcdef;") == 1
    assert ".token_mean { --own: var(--token-mean); }" in page
    assert ".chip.token_mean::before { clip-path:" in page
    assert '<div class="chip token_mean">Token mean</div>' in page


def test_figures_have_its_colour(make_results) -> None:
    models = make_results({"token_mean": 0.9, "efficient": 0.8, "none": 0.6})["models"]
    ious = {
        name: {key: of["iou"] for key, of in model["per_class"].items()} for name, model in models.items()
    }
    images = {name: model["image_miou"] for name, model in models.items()}
    labels = {name: ATTENTIONS[name].label for name in models}
    charts = [
        loss_curves({name: [run["loss"] for run in model["runs"]] for name, model in models.items()}, "Loss"),
        class_scores(ious, "Classes"),
        image_scores(images, labels, "Images"),
        image_differences("token_mean", "efficient", images, "Leads"),
    ]
    for chart in charts:
        assert "var(--token-mean)" in chart
        assert "#070707" not in chart  # the stand-in that the variable replaces
