"""Train and save the small model that ships with the package.

python -m studies.example_model --output DIR

A SegFormer of half B0's width with criss-cross attention, from scratch on generated scenes of 256 pixels.
"""

import argparse
import time
from pathlib import Path

from ccsegformer.data.labels import write_classes
from ccsegformer.data.procedural.scenes import ProceduralScenes
from ccsegformer.data.transforms import HorizontalFlip
from ccsegformer.training._output import image_processor
from studies.harness import Plan, build, train

WIDTHS = {"hidden_sizes": (16, 32, 80, 128), "decoder_hidden_size": 128}
SCENES = 400


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200, help="steps of four scenes")
    given = parser.parse_args()
    scenes = ProceduralScenes("training", count=SCENES)
    plan = Plan(
        augment=HorizontalFlip(probability=0.5),
        steps=given.steps,
        overrides=(*WIDTHS.items(), ("lepe", True), ("id2label", scenes.classes.id2label)),
        warmup_steps=given.steps // 20,
    )
    model, began = build(plan, scenes.classes, 0, None), time.monotonic()
    for step in train(model, scenes, plan, 0):
        if step % 100 == 0:
            print(f"step {step}/{given.steps}, {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    model.eval().save_pretrained(given.output)
    image_processor(model.config).save_pretrained(given.output)
    write_classes(scenes.classes, given.output / "classes.json")


if __name__ == "__main__":
    main()
