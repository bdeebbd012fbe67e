"""Results and examples of a comparison, without training."""

import numpy as np
import pytest

from ccsegformer.config.protocol import EvaluationProtocol
from ccsegformer.data.palette import default_palette
from ccsegformer.evaluation.bootstrap import mean_iou_from_counts
from ccsegformer.lab.verdict import judge
from ccsegformer.report.page import Example

CLASSES = ["water", "road", "forest", "wheat", "rye", "building", "vehicle", "bare ground"]
SCORES = {"efficient": 0.86, "criss_cross": 0.91, "none": 0.62}


def _make_counts(
    score: float, *, images: int = 60, seeds: int = 1, seed: int = 0, classes: int = 8
) -> np.ndarray:
    """Return counts (seeds, images, 3, classes) of a model whose mean IoU is about `score`."""
    generator = np.random.default_rng([seed, round(1000 * score)])
    pixels = generator.integers(500, 1500, size=(images, classes))
    share = np.clip(score + generator.normal(0, 0.05, (seeds, images, classes)), 0, 1)
    pixels = np.broadcast_to(pixels, share.shape)
    return np.stack([(share * pixels).astype(np.int64), pixels, pixels], axis=2)


def _make_results(scores=None, *, images: int = 60, seeds: int = 1, classes=None) -> dict:
    """Return results in the form that `compare` returns."""
    scores, classes = scores or SCORES, classes or CLASSES
    counts = {
        name: _make_counts(score, images=images, seeds=seeds, classes=len(classes))
        for name, score in scores.items()
    }
    verdict = judge(counts)
    generator = np.random.default_rng(3)
    models = {}
    for place, (attention, of) in enumerate(counts.items()):
        by_seed = mean_iou_from_counts(of.sum(axis=1))
        total = of.sum(axis=(0, 1))
        per_class = {
            name: {"iou": float(right / truth), "accuracy": float(right / truth)}
            for name, right, truth in zip(classes, total[0], total[1], strict=True)
        }
        steps = np.arange(1, 601)
        loss = 0.08 * place + 0.05 + 1.6 * np.exp(-steps / (90 + 40 * place))
        runs = [
            {
                "seed": seed,
                "mean_iou": float(score),
                "loss": [
                    [int(s), float(x)]
                    for s, x in zip(steps, loss * generator.lognormal(0, 0.3, 600), strict=True)
                ],
                "seconds": 301.5 + 50 * place,
                "folder": f"runs/demo/{attention}-seed{seed}",
            }
            for seed, score in enumerate(by_seed)
        ]
        models[attention] = {
            "attention": attention,
            "recurrence": 2 if attention == "criss_cross" else None,
            "projection": "multi_head",
            "lepe": True,
            "mean_iou": float(by_seed.mean()),
            "mean_iou_std": float(by_seed.std(ddof=1)) if seeds > 1 else None,
            "mean_iou_interval": verdict["intervals"][attention],
            "mean_accuracy": 0.93,
            "pixel_accuracy": 0.957,
            "devkit_mean_iou": float(by_seed.mean()),
            "parameters": 3_716_000 + 1000 * place,
            "gflops": 3.18 + place,
            "peak_memory_mib": 48.2 + place,
            "images_per_second": 11.3 - place,
            "train_seconds": 301.5 + 50 * place,
            "per_class": per_class,
            "image_miou": mean_iou_from_counts(of).mean(axis=0).tolist(),
            "runs": runs,
        }
    return {
        "created": "2026-11-23 01:00 UTC",
        "version": "0.1.0",
        "command": "ccsegformer compare recipes/from_scratch.yaml --data procedural --output runs/demo",
        "machine": {
            "processor": "Some CPU @ 2.0 GHz",
            "cores": 2,
            "threads": 2,
            "gpu": None,
            "system": "Linux",
        },
        "recipe": {
            "model": {"size": "b0", "attention": "criss_cross"},
            "training": {"steps": 600, "batch_size": 4},
        },
        "data": {
            "name": "procedural",
            "training": 800,
            "validation": images,
            "classes": list(classes),
            "palette": [list(color) for color in default_palette(len(classes))],
            "ignore_index": 255,
            "images": [f"scene_{index:04}" for index in range(images)],
        },
        "protocol": {
            "name": EvaluationProtocol().name,
            "summary": EvaluationProtocol().summary(),
            **EvaluationProtocol().model_dump(mode="json"),
            "device": "cpu",
            "cost": {"height": 256, "width": 256, "device": "cpu", "threads": 2},
        },
        "verdict": verdict,
        "models": models,
    }


def _make_examples(results: dict, size: int = 64) -> list[Example]:
    """Return one example of blocky noise."""
    generator = np.random.default_rng(1)
    blocks = generator.integers(len(results["data"]["classes"]), size=(8, 8))
    truth = np.kron(blocks, np.ones((size // 8, size // 8), dtype=np.int64))
    truth[:4] = 255
    image = generator.integers(256, size=(size, size, 3), dtype=np.uint8)
    predictions = {
        attention: np.roll(truth, 3) % len(results["data"]["classes"]) for attention in results["models"]
    }
    name = results["data"]["images"][0]
    scores = {attention: model["image_miou"][0] for attention, model in results["models"].items()}
    return [Example(name, "Best for criss-cross, +0.124", image, truth, predictions, scores)]


@pytest.fixture
def make_results():
    return _make_results


@pytest.fixture
def make_examples():
    return _make_examples


@pytest.fixture
def results() -> dict:
    return _make_results()


@pytest.fixture
def examples(results) -> list[Example]:
    return _make_examples(results)
