"""Model cards: what they say, that the hub can read them, and that they keep secrets."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from ccsegformer.errors import CheckpointError, DataError, OutputError
from ccsegformer.models.origins import weight_origins, write_origins
from ccsegformer.publishing.card import write_card
from ccsegformer.publishing.licence import NVIDIA_LINK, licence_of
from ccsegformer.publishing.names import public_data, public_model
from ccsegformer.training.recipe import Recipe
from tests.hub import Hub
from tests.publishing.conftest import score, train_small


def card_of(folder: Path, **options: Any) -> ModelCard:
    write_card(folder, "me/mine", **options)
    return ModelCard.load(folder / "README.md")


def tables_of(markdown: str) -> list[list[list[str]]]:
    """Return the cells of each table of a Markdown text as a reader sees them, by row."""
    tables: list[list[list[str]]] = []
    cell = False
    for token in MarkdownIt().enable("table").parse(markdown):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type in ("td_open", "th_open"):
            cell = True
        elif token.type == "inline" and cell:
            tables[-1][-1].append("".join(part.content for part in token.children or ()))
            cell = False
    return tables


def test_a_card_gives_the_scores_in_words_and_in_the_hubs_form(scored: Path, hub: Hub) -> None:
    metrics = json.loads((scored / "metrics.json").read_text())
    card = card_of(scored)
    card.validate()  # by the hub
    assert hub.cards == [card.content]

    mean, *others = card.data.eval_results
    low, high = metrics["mean_iou_interval"]
    assert (mean.metric_type, mean.metric_value) == ("mean_iou", round(metrics["mean_iou"], 4))
    assert mean.metric_name == f"Mean IoU, 95% interval {low:.3f} to {high:.3f}"
    assert (mean.dataset_name, mean.dataset_type, mean.dataset_split) == ("fields", "fields", "validation")
    assert mean.metric_args == {"protocol": "default", "images": 12}
    assert [other.metric_type for other in others] == ["mean_accuracy", "accuracy"]
    assert card.data.model_name == "mine" and card.data.library_name == "ccsegformer"

    tables = tables_of(card.text)
    assert ["95% interval, images resampled", f"{low:.3f} to {high:.3f}"] in tables[2]
    header, *rows = tables[3]
    assert header == ["class", "IoU", "accuracy", "true pixels"]
    found = {name: of for name, of in metrics["per_class"].items() if of["iou"] is not None}
    assert {row[0]: row[1] for row in rows} == {name: f"{of['iou']:.3f}" for name, of in found.items()}
    assert "a|b <i>" in {row[0] for row in rows}, "a class name must be shown as it is"
    assert "Occur in no training mask, so were not learned: never seen." in card.text
    assert "whole image; one scale; no flip; fp32" in card.text


def test_a_card_without_scores_says_so(run_folder: Path) -> None:
    card = card_of(run_folder)
    assert "**Not evaluated.**" in card.text and "How good it is has not been measured." in card.text
    assert card.data.eval_results is None and card.data.metrics is None


def test_few_images_have_no_interval(run_folder: Path, secret_data: Path) -> None:
    score(run_folder, secret_data, "training")
    card = card_of(run_folder)
    assert "none for 4 images; 10 are needed" in card.text
    assert card.data.eval_results[0].metric_name == "Mean IoU"
    assert "**The images scored are those of the training**" in card.text


def test_scores_of_chosen_weights_are_called_too_kind(scored: Path) -> None:
    assert "too kind" not in card_of(scored).text
    recipe = yaml.safe_load((scored / "recipe.yaml").read_text())
    recipe["validation"] = {"steps": 1, "keep_best": True}
    (scored / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert "so the scores are too kind" in card_of(scored).text


def test_scores_of_other_weights_are_refused(scored: Path, run_folder: Path) -> None:
    weights = bytearray((scored / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (scored / "model.safetensors").write_bytes(weights)
    with pytest.raises(DataError, match=r"metrics\.json: scores other weights .* score them again"):
        write_card(scored)
    earlier = json.loads((scored / "metrics.json").read_text())
    del earlier["scored"]
    (run_folder / "metrics.json").write_text(json.dumps(earlier))
    with pytest.raises(DataError, match=r"metrics\.json: does not say which weights it scores"):
        write_card(run_folder)
    assert not (run_folder / "README.md").exists()


def test_the_recipe_in_a_card_can_be_used_and_names_no_folder(scored: Path, secret_data: Path) -> None:
    text = card_of(scored).content
    assert str(secret_data.parent) not in text and "client-x" not in text and "secret" not in text
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert block
    Recipe.model_validate(yaml.safe_load(block[1]))


def test_a_plain_segformer_is_one_for_the_hub(secret_data: Path, tmp_path: Path) -> None:
    card = card_of(train_small(secret_data, tmp_path / "plain", "efficient"))
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-segmentation"
    assert 'pipeline("image-segmentation", model="me/mine")' in card.text
    assert "A plain SegFormer: transformers loads it alone." in card.text


def test_criss_cross_attention_needs_this_package(run_folder: Path) -> None:
    text = card_of(run_folder).text
    assert "to load it, install ccsegformer" in text and "from transformers" not in text
    assert "| Attention | Criss-cross in every stage |" in text


def test_the_licence_follows_the_weights_through_runs(
    trained: Path, secret_data: Path, tmp_path: Path
) -> None:
    nvidia = shutil.copytree(trained, tmp_path / "checkpoint")
    (nvidia / "origins.json").unlink()
    (nvidia / "recipe.yaml").unlink()
    write_origins(nvidia, ("hf://nvidia/mit-b0",))
    again = train_small(secret_data, tmp_path / "again", "criss_cross", pretrained=str(nvidia))
    shutil.rmtree(nvidia)
    card = card_of(again)
    assert (card.data.license, card.data.license_link) == ("other", NVIDIA_LINK)
    assert card.data.license_name == "nvidia-source-code-license-segformer"
    assert card.data.base_model == "nvidia/mit-b0"
    assert "research and evaluation only" in card.text
    assert "`checkpoint`, which is from `nvidia/mit-b0`" in card.text and str(tmp_path) not in card.text
    with pytest.raises(DataError, match=r"--license apache-2\.0: only for weights trained from random ones"):
        write_card(again, license="apache-2.0")


def test_a_licence_is_the_owners_choice_for_weights_from_random_ones(run_folder: Path) -> None:
    assert card_of(run_folder).data.license is None
    assert card_of(run_folder, license="cc-by-4.0").data.license == "cc-by-4.0"


@pytest.mark.parametrize(
    ("origins", "name"),
    [
        (("hf://nvidia/segformer-b0-finetuned-ade-512-512",), "nvidia-source-code-license-segformer"),
        (("SegFormer checkpoint mine.pth",), "nvidia-source-code-license-segformer"),
        (("runs/a", "/data/mit_b0"), "nvidia-source-code-license-segformer"),
        (("hf://someone/road-b0",), "licence-of-the-base-model"),
        (("runs/unknown",), "licence-of-the-base-model"),
        (None, "licence-of-the-base-model"),
    ],
)
def test_foreign_weights_are_never_given_a_free_licence(origins: Any, name: str) -> None:
    licence = licence_of(origins)
    assert (licence.license, licence.name) == ("other", name)


def test_where_weights_are_from(run_folder: Path, tmp_path: Path) -> None:
    assert weight_origins(None) == ("random weights",)
    assert weight_origins("nvidia/mit-b0") == ("hf://nvidia/mit-b0",)
    assert weight_origins(run_folder) == (str(run_folder), "random weights")
    checkpoint = run_folder / "checkpoint-2"
    assert weight_origins(checkpoint) == (str(checkpoint), "random weights")
    (run_folder / "origins.json").unlink()  # a run of an earlier version
    assert weight_origins(run_folder) == (str(run_folder), "random weights")
    recipe = yaml.safe_load((run_folder / "recipe.yaml").read_text())
    recipe["model"]["pretrained"] = "runs/gone"
    (run_folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert weight_origins(run_folder) == (str(run_folder), "runs/gone")
    (run_folder / "origins.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"origins\.json: cannot be read"):
        weight_origins(run_folder)


def test_a_readme_of_another_hand_is_kept(run_folder: Path) -> None:
    (run_folder / "README.md").write_text("My notes\n")
    with pytest.raises(OutputError, match=r"README\.md: was not written by ccsegformer"):
        write_card(run_folder)
    assert (run_folder / "README.md").read_text() == "My notes\n"
    (run_folder / "README.md").unlink()
    write_card(run_folder)
    write_card(run_folder)  # its own card is written anew


def test_training_over_a_run_removes_its_card_alone(run_folder: Path, secret_data: Path) -> None:
    from ccsegformer.training._output import check_unused

    write_card(run_folder)
    for path in run_folder.iterdir():
        if path.name != "README.md":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(OutputError, match=r"holds another run \(README\.md\)"):
        check_unused(run_folder, overwrite=False)
    (run_folder / "README.md").write_text("My notes\n")
    check_unused(run_folder, overwrite=False)


def test_a_folder_without_a_model_has_no_card(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no trained model: model\.safetensors is missing"):
        write_card(tmp_path)


@pytest.mark.parametrize(
    ("data", "title", "slug", "on_hub"),
    [
        ("/home/x/Roads 2024?bands=4%2C3%2C2", "Roads 2024", "roads-2024", None),
        ("C:\\data\\roads", "roads", "roads", None),
        ("hf://datasets/org/set@v1/part?image=i", "org/set", "org/set", "org/set"),
        ("scene_parse_150", "SceneParse150 (ADE20K)", "scene_parse_150", None),
        ("VOC object, 5 samples", "VOC object, 5 samples", "voc-object-5-samples", None),
    ],
)
def test_public_names_of_data(data: str, title: str, slug: str, on_hub: str | None) -> None:
    assert public_data(data)[:3] == (title, slug, on_hub)


def test_public_names_of_models() -> None:
    assert public_model("hf://nvidia/mit-b0") == "nvidia/mit-b0"
    assert public_model("/home/x/runs/first") == "first"
