import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ccsegformer.training.recipe import Recipe, save_recipe
from ccsegformer.training.trainer import train

SCRIPT = """
import sys
import torch
from ccsegformer.models import configuration_ccsegformer
from ccsegformer.training.recipe import load_recipe
from ccsegformer.training.trainer import train

torch.set_num_threads(1)
configuration_ccsegformer._MIT["b0"] = ((8, 16, 40, 64), (1, 1, 1, 1), 16)
recipe, data, output = sys.argv[1:]
result = train(load_recipe(recipe), data, output)
assert not result.model.training
torch.distributed.destroy_process_group()
"""


@pytest.mark.usefixtures("tiny")
def test_two_processes_train_as_one(tmp_path: Path, data: Path, recipe: Callable[..., Recipe]) -> None:
    """Same recipe and global batch, with dropout, stochastic depth and batch norm active.

    Both leave out a damaged image, and choose the others by their classes.
    """
    four_steps = recipe(
        training={"steps": 4, "accumulation": 4, "skip_bad_files": True},
        images={"rare_classes": 0.5},
        optimizer={"head_learning_rate_factor": 2.0, "weight_decay": 0.01, "decay_biases": True},
    )
    (data / "images" / "training" / "1.png").write_bytes(b"damaged")
    save_recipe(four_steps, tmp_path / "recipe.yaml")
    (tmp_path / "script.py").write_text(SCRIPT)
    output = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [tmp_path / "script.py", tmp_path / "recipe.yaml", data, output]
    finished = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("step 4/4") == 1  # only one process prints
    assert len(list((output / "logs").iterdir())) == 1  # and only one logs, into the folder that it cleared

    one = train(four_steps, data, tmp_path / "one")

    log = json.loads((output / "training_log.json").read_text())
    assert (log["processes"], log["global_batch"]) == (2, 8)
    assert list(log["skipped_files"]) == ["1"]
    assert [loss for _, loss in log["loss"]] == pytest.approx(
        [loss for _, loss in one.loss_history], rel=1e-4
    )
    assert_close(output, tmp_path / "one")
    # One process can finish what two began.
    shutil.rmtree(output / "checkpoint-4")
    (output / "model.safetensors").unlink()
    train(four_steps, data, output, resume=True)
    assert_close(output, tmp_path / "one")


@pytest.mark.parametrize(
    "way",
    ["--multi_gpu", "--use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP"],
    ids=["ddp", "fsdp"],
)
@pytest.mark.usefixtures("tiny")
def test_accelerate_launches_processes_that_train_as_one(
    way: str, tmp_path: Path, data: Path, recipe: Callable[..., Recipe]
) -> None:
    two_steps = recipe(training={"steps": 2, "accumulation": 2})
    save_recipe(two_steps, tmp_path / "recipe.yaml")
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "accelerate.commands.launch", *way.split(), "--num_processes", "2"]
    # What accelerate would else ask its own configuration file for, or warn about.
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    arguments = [tmp_path / "script.py", tmp_path / "recipe.yaml", data, tmp_path / "two"]
    finished = subprocess.run(
        [*launch, *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert json.loads((tmp_path / "two" / "training_log.json").read_text())["processes"] == 2
    train(two_steps, data, tmp_path / "one")
    assert_close(tmp_path / "two", tmp_path / "one")


def assert_close(one: Path, other: Path) -> None:
    left, right = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert left.keys() == right.keys()
    for name, expected in right.items():
        # Batch norm cancels these biases: their gradient is rounding error, which Adam scales up to a step.
        shift = name.startswith(("decode_head.linear_c", "segformer.encoder.layer_norm")) and "bias" in name
        absolute = 1e-3 if shift or name.endswith("running_mean") else 1e-5
        torch.testing.assert_close(
            left[name], expected, rtol=1e-4, atol=absolute, msg=lambda m, n=name: f"{n}: {m}"
        )
