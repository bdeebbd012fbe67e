"""Uploads to a stand-in for the hub."""

import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import yaml

from ccsegformer.cli import main
from ccsegformer.errors import OutputError
from ccsegformer.labelling.loading import load_model
from ccsegformer.publishing.upload import prepare_upload, upload
from ccsegformer.training import trainer
from ccsegformer.training.recipe import load_recipe
from tests.hub import TOKEN, Hub


def publish(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["ccsegformer", "publish", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_run_is_published_whole_and_nothing_else_of_it(
    scored: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert publish(monkeypatch, scored, "--to", "me/mine", "--private") == 0
    out = capsys.readouterr().out
    assert hub.private == {"me/mine": True} and f"{hub.address}/me/mine: published (private)" in out
    assert set(hub.files) == {
        *("README.md", "config.json", "model.safetensors", "preprocessor_config.json"),
        *("classes.json", "confusion.csv", "recipe.yaml"),
    }
    for name, content in hub.files.items():
        assert f"{len(content):,} bytes  {name}" in out
        assert b"client-x" not in content and b"secret" not in content, name
    assert yaml.safe_load(hub.files["recipe.yaml"])["data"] == "fields"
    assert hub.cards == [hub.files["README.md"].decode()]

    for name, content in hub.files.items():
        (tmp_path / "loaded").mkdir(exist_ok=True)
        (tmp_path / "loaded" / name).write_bytes(content)
    assert hub.files["model.safetensors"] == (scored / "model.safetensors").read_bytes()
    _, classes = load_model(tmp_path / "loaded")
    assert classes == load_model(scored)[1]
    load_recipe(tmp_path / "loaded" / "recipe.yaml")


def test_a_dry_run_writes_the_card_and_talks_to_nobody(
    run_folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(monkeypatch, run_folder, "--to", "me/mine", "--dry-run") == 0
    assert f"{run_folder / 'README.md'}: written; nothing was uploaded" in capsys.readouterr().out
    assert hub.private == {} and (run_folder / "README.md").is_file()


def test_a_public_repository_is_no_place_for_private_weights(run_folder: Path, hub: Hub) -> None:
    hub.private["me/mine"] = False
    files = prepare_upload(run_folder, "me/mine")
    with pytest.raises(OutputError, match="me/mine: exists and is public; nothing was uploaded"):
        upload(files, "me/mine", private=True)
    assert hub.files == {}
    upload(files, "me/mine")
    assert "README.md" in hub.files


@pytest.mark.parametrize("token", ["hf_wrong", None])
def test_without_a_login_the_message_says_what_to_do(
    token: str | None, run_folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OutputError, match="run `hf auth login`, or set HF_TOKEN") as caught:
        upload(prepare_upload(run_folder, "me/mine"), "me/mine")
    assert "\n" not in str(caught.value) and "hf_" not in str(caught.value).replace("hf auth", "")


def test_a_refusal_and_a_hub_out_of_reach_are_one_line_without_the_token(
    run_folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refusal = (403, "You are over\nyour quota.")
    assert publish(monkeypatch, run_folder, "--to", "me/mine") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "ccsegformer: error: me/mine: the hub refused (403): You are over your quota."
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert publish(monkeypatch, run_folder, "--to", "me/mine") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ccsegformer: error: me/mine: could not be uploaded to http://127.0.0.1:9: ")
    assert TOKEN not in error


@pytest.mark.parametrize("name", ["mine", "me/mine/more", "me/mi ne", "-me/mine"])
def test_a_name_that_the_hub_does_not_take(name: str, run_folder: Path) -> None:
    with pytest.raises(OutputError, match=r"^--to "):
        prepare_upload(run_folder, name)


def test_the_trainers_own_push_writes_this_card(
    secret_data: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.publishing.conftest import train_small

    arguments, pushed = trainer.trainer_arguments, []

    def with_push(*given: object, **named: object) -> object:
        made = arguments(*given, **named)  # type: ignore[arg-type]
        made.push_to_hub, made.hub_model_id = True, "me/pushed"
        return made

    def push(of: trainer.SegmentationTrainer, *given: object) -> object:
        of.push_to_hub()
        pushed.append(of)
        return finish(of, *given)  # type: ignore[arg-type]

    finish = trainer._finish
    monkeypatch.setattr(trainer, "trainer_arguments", with_push)
    monkeypatch.setattr(trainer, "_finish", push)
    train_small(secret_data, tmp_path / "pushed", "criss_cross")
    assert pushed and b"**Not evaluated.**" in hub.files["README.md"]
    assert b'load_model("me/pushed")' in hub.files["README.md"]
