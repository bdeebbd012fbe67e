"""Train criss-cross designs from scratch and from a trained efficient model, and tabulate their mIoU.

python -m studies.closing_the_gap --data DIR

An interrupted study resumes. In the folder of the published experiment, the default, it reuses that study's
efficient models.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from ccsegformer.data.labels import Classes
from ccsegformer.lab.cost import count_flops
from ccsegformer.report.machine import describe_machine
from studies.closing_the_gap.designs import Design, from_efficient, from_scratch
from studies.harness import build, mean_iou
from studies.options import Study, chosen, parse_study
from studies.runs import PRETRAINED, scored, trained_weights, write_json
from studies.tables import can_judge, dot_plot, markdown_table

BASE = "efficient"
COLUMNS = {"whole": "mIoU, whole images", "windows": "mIoU, windows of the training crops' size"}
SIDES = (512, 2048)
GROUPS = {"from_scratch": "From scratch", "from_efficient": "From the trained efficient model"}


def run(study: Study, group: str, name: str, design: Design, seed: int) -> dict[str, float]:
    """Return the mIoU of a design on the validation split, shown as whole images and in windows."""
    folder, plan = study.folder(seed), design.plan
    start = study.pretrained(seed) if plan.keep else None
    training = PRETRAINED if name == BASE else f"{group}-{name}"
    weights = trained_weights(folder, training, plan, study.training, seed, start)["end"]
    whole = scored(folder, f"{training}-end", plan, weights, study.validation, seed)
    windows = scored(
        folder, f"{training}-end-windows", plan, weights, study.validation, seed, window=study.size
    )
    matrices = {"whole": whole, "windows": windows}
    classes = len(study.validation.classes)
    return {column: mean_iou(of.sum(axis=0), classes) for column, of in matrices.items()}


def gigaflops(design: Design, classes: Classes) -> list[float]:
    """Count the GFLOPs of an image of 512 x 512 and of 2048 x 2048; a multiply-add is two operations."""
    model = build(replace(design.plan, keep=None), classes, 0, None)
    return [round(count_flops(model, side, side) / 1e9, 1) for side in SIDES]


def run_group(study: Study, group: str, designs: Mapping[str, Design]) -> dict[str, dict[str, Any]]:
    """Return each design's guess, cost and mIoU of every seed."""
    results: dict[str, dict[str, Any]] = {}
    for name, design in designs.items():
        scores = []
        for seed in study.seeds:
            scores.append(run(study, group, name, design, seed))
            print(f"{group}, seed {seed}, {name}: {scores[-1]}", flush=True)
        miou = {column: [of[column] for of in scores] for column in COLUMNS}
        results[name] = {
            "guess": design.guess,
            "gflops": gigaflops(design, study.validation.classes),
            "miou": miou,
        }
    return results


def write_group(study: Study, group: str, designs: Mapping[str, Design], results: dict[str, Any]) -> str:
    """Write a group's plot and return its table."""
    rows = {name: of["miou"] for name, of in results.items()}
    texts = {
        "": {name: designs[name].what for name in results},
        "guess": {name: of["guess"] for name, of in results.items()},
        "GFLOPs at 512 / 2048": {name: "{} / {}".format(*of["gflops"]) for name, of in results.items()},
    }
    title = f"{GROUPS[group]}, on {study.name}"
    dot_plot(rows, COLUMNS, BASE, title, study.output / f"closing_the_gap_{group}.svg")
    table = f"### {title}\n\n" + markdown_table(rows, texts, COLUMNS, BASE)
    if "none" in rows:
        table += "\n" + can_judge(rows, "whole", [name for name in rows if name != "none"], "none") + "\n"
    return table


def main() -> None:
    """Run what is missing, then write the tables and the plots."""
    study = parse_study(__doc__)
    efficient = Design(
        "Efficient Self-Attention", "", study.from_scratch(overrides=(("attention", "efficient"),))
    )
    groups: dict[str, dict[str, Design]] = {
        "from_scratch": {BASE: efficient, **from_scratch(study)},
        "from_efficient": {BASE: efficient, **from_efficient(study)},
    }
    rows = chosen(study, [name for of in groups.values() for name in of], BASE)
    groups = {group: {n: d for n, d in of.items() if n in rows} for group, of in groups.items()}
    results = {group: run_group(study, group, designs) for group, designs in groups.items()}
    tables = [write_group(study, group, designs, results[group]) for group, designs in groups.items()]
    content = {"settings": study.settings, "seeds": study.seeds, "machine": describe_machine()}
    date = datetime.now(UTC).date().isoformat()
    write_json({"date": date, **content, "results": results}, study.output / "closing_the_gap.json")
    (study.output / "closing_the_gap.md").write_text("\n".join(tables))
    print("\n".join(tables))


if __name__ == "__main__":
    main()
