"""Is criss-cross attention better than efficient attention at equal cost, where large windows are needed?

python -m studies.equal_cost

Train models on generated scenes of 256 pixels, then label scenes of 2048 pixels, where a landmark can be a
thousand pixels away, in windows of several sizes. The guesses are a record, written before the first run:
do not edit them. An interrupted study resumes, and processes of the same command share the trainings.

Guesses (28 November 2026). Small windows do not show the landmarks: with 512 every model loses ten points
or more against 2048. At 2048 a B1 with criss-cross attention costs less than a B0 with efficient attention
and is 0.005 to 0.015 mIoU ahead, because thin objects (roads, vehicles) gain from its width; B0 with
criss-cross attention is within 0.005 of B0 with efficient attention at a third of its cost. Without
attention, B0 loses 0.05 or more.

Added before their first run (1 December 2026), since a user of efficient attention would try them: B0 with
its sequence reduction ratios doubled costs about what criss-cross attention costs in windows of 2048, and
loses 0.005 against it; B0 on scenes shrunk to 0.72, which costs the same, loses 0.02 or more, in thin
objects. Both are trained that way. Runs have 800 steps, not 1600: five seeds in the time at hand.
"""

import argparse
import json
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import SegformerConfig

from ccsegformer.config.protocol import EvaluationProtocol, ResizeSection, WindowSection
from ccsegformer.data.procedural.scenes import ProceduralScenes
from ccsegformer.evaluation.evaluate import evaluate
from ccsegformer.lab.cost import count_flops
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
from ccsegformer.models.attention import ATTENTIONS
from ccsegformer.models.modeling_ccsegformer import load_trained
from ccsegformer.report.machine import describe_machine
from ccsegformer.training.recipe import load_recipe
from studies.equal_cost.summary import draw, table
from studies.runs import write_json
from studies.sharing import share, train_once
from studies.tables import spread

RECIPE = Path(__file__).parents[2] / "recipes" / "far_context.yaml"
MEGA, GIGA = 10**6, 10**9
CLASSES = len(ProceduralScenes.classes)


class Network(NamedTuple):
    """A size, an attention, and two ways to make efficient attention cheaper.

    Attributes:
        size: "b0" or "b1".
        attention: Attention of all stages.
        reduction: Factor of SegFormer's sequence reduction ratios, 8, 4, 2 and 1.
        scale: Factor by which images are resized, in training too.
    """

    size: str
    attention: str
    reduction: int = 1
    scale: float = 1.0

    def __str__(self) -> str:
        reduced = f"-reduced{self.reduction}" if self.reduction > 1 else ""
        return f"{self.size}-{self.attention}{reduced}{f'-scaled{self.scale:.2f}' if self.scale < 1 else ''}"

    @property
    def phrase(self) -> str:
        """The network in words."""
        reduced = f", {self.reduction} x sequence reduction" if self.reduction > 1 else ""
        scaled = f", images x {self.scale:.2f}" if self.scale < 1 else ""
        return f"{self.size.upper()}, {ATTENTIONS[self.attention].label.lower()}{reduced}{scaled}"

    def config(self) -> CrissCrossSegformerConfig:
        """Return the configuration for the generated scenes."""
        ratios = [self.reduction * ratio for ratio in SegformerConfig().sr_ratios]
        return CrissCrossSegformerConfig.mit(
            self.size, attention=self.attention, sr_ratios=ratios, num_labels=CLASSES
        )


NETWORKS = (
    Network("b0", "efficient"),
    Network("b0", "criss_cross"),
    Network("b0", "none"),
    Network("b0", "efficient", reduction=2),
    Network("b0", "efficient", scale=184 / 256),
    Network("b1", "criss_cross"),
    Network("b1", "none"),
)


def train_all(given: argparse.Namespace) -> None:
    """Train what is missing, shared with other processes of the same command."""
    runs = product(given.seeds, chosen(given))
    share({of(given, network, seed): partial(train_run, given, network, seed) for seed, network in runs})


def train_run(given: argparse.Namespace, network: Network, seed: int) -> None:
    """Train or resume a run, unless it has finished."""
    folder = of(given, network, seed)
    overrides = [f"model.size={network.size}", f"model.attention={network.attention}"]
    if network.reduction > 1:  # no key of a recipe: start from a saved model that is not trained
        start = folder.with_name(f"{folder.name}-start")
        torch.manual_seed(seed)
        CrissCrossSegformerForSemanticSegmentation(network.config()).save_pretrained(start)
        overrides.append(f"model.pretrained={start}")
    if network.scale < 1:
        resize = f"{{name: random_resize, ratio: [{network.scale}, {network.scale}]}}"
        overrides.append(f"transforms=[{resize}, {{name: horizontal_flip, probability: 0.5}}]")
    overrides += [f"training.seed={seed}", f"training.steps={given.steps}"]
    train_once(load_recipe(RECIPE, overrides), "procedural", folder)


def of(given: argparse.Namespace, network: Network, seed: int) -> Path:
    """Return the folder of a run."""
    folder: Path = given.output / f"{network}-{seed}"
    return folder


def chosen(given: argparse.Namespace) -> list[Network]:
    """Return the networks to run."""
    return [network for network in NETWORKS if not given.only or str(network) in given.only]


def windows(network: Network, given: argparse.Namespace) -> list[int]:
    """Return the windows to label in: the largest alone for networks that were made cheaper to afford it."""
    return [max(given.windows)] if network.reduction > 1 or network.scale < 1 else given.windows


def scored(network: Network, folder: Path, given: argparse.Namespace, window: int) -> list[float]:
    """Return the mean IoU and the IoU of each class in windows side by side; score unless kept on disk."""
    path = folder / f"scored-{given.scene}-{given.scenes}-{window}.json"
    if not path.is_file():
        scenes = ProceduralScenes("validation", count=given.scenes, size=given.scene)
        side, seen = round(given.scene * network.scale), round(window * network.scale)
        protocol = EvaluationProtocol(
            resize=ResizeSection(short_side=side), window=WindowSection(size=seen, stride=seen)
        )
        metrics = evaluate(load_trained(str(folder)), scenes, protocol=protocol).metrics
        write_json([metrics.mean_iou, *(found["iou"] for found in metrics.per_class.values())], path)
    values: list[float] = json.loads(path.read_text())
    return values


def gflops(network: Network, window: int) -> float:
    """Return the operations for a megapixel of the scene, in 10^9; a multiply-add counts as two."""
    seen = round(window * network.scale)
    counted = count_flops(CrissCrossSegformerForSemanticSegmentation(network.config()), seen, seen)
    return counted / GIGA / (window * window / MEGA)


def results(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each network and window."""
    rows = []
    for network in chosen(given):
        folders = [of(given, network, seed) for seed in given.seeds]
        for window in windows(network, given):
            scores = np.array([scored(network, folder, given, window) for folder in folders])
            print(f"{network}, windows of {window}: {spread(scores[:, 0].tolist())}", flush=True)
            rows.append(
                {
                    **network._asdict(),
                    "name": network.phrase,
                    "window": window,
                    "scores": scores.tolist(),
                    "gflops": gflops(network, window),
                }
            )
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, then write the table and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/studies/equal_cost"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=800, help="steps of 4 scenes of 256 pixels")
    parser.add_argument("--scene", type=int, default=2048, help="side of the scenes to label, in pixels")
    parser.add_argument("--scenes", type=int, default=4, help="number of scenes to label")
    parser.add_argument("--windows", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument(
        "--only", nargs="+", default=[], help="networks, such as b1-criss_cross; default: all"
    )
    parser.add_argument("--train-only", action="store_true", help="do not score")
    given = parser.parse_args(arguments)
    train_all(given)
    if given.train_only:
        return
    rows = results(given)
    settings = {"scene": given.scene, "scenes": given.scenes, "steps": given.steps, "seeds": given.seeds}
    write_json(
        {"machine": describe_machine(), "settings": settings, "rows": rows}, given.output / "results.json"
    )
    (given.output / "results.md").write_text(table(rows))
    title = f"Scenes of {given.scene} pixels, landmarks anywhere in them"
    draw(rows, title, given.output / "results.svg")
    print(table(rows))


if __name__ == "__main__":
    main()
