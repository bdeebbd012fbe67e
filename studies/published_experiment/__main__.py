"""Train the report's experiment, with each of its fifteen defects and with all, and tabulate their mIoU.

python -m studies.published_experiment --data DIR

An interrupted study resumes. Each run starts with the encoder of a SegFormer trained with efficient attention
on the same images; the report's started with one trained on ImageNet.
"""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ccsegformer.data.labels import Classes
from ccsegformer.report.machine import describe_machine
from ccsegformer.training.freezing import freeze
from studies.harness import Matrices, Model, mean_iou
from studies.options import Study, chosen, parse_study
from studies.published_experiment.defects import Experiment, all_defects, change_plan
from studies.runs import scored, trained_weights, write_json
from studies.tables import can_judge, dot_plot, markdown_table

COLUMNS = {"proper": "mIoU, scored properly", "reported": "as this code would report it"}


def arms(classes: Classes, study: Study) -> dict[str, tuple[str, Experiment]]:
    """Return every experiment with its description, by name."""
    correct = Experiment(study.begun(keep=_encoder_but_attention))
    efficient = change_plan(correct, overrides=(("attention", "efficient"),), keep=_encoder)
    defects = all_defects(classes)
    notebook = correct
    for defect in defects.values():
        notebook = defect(notebook)
    return {
        "correct": ("criss-cross attention as the report describes it", correct),
        "efficient": ("efficient attention, the same recipe", efficient),
        "efficient, frozen": (
            "efficient attention, only the decode head trained",
            change_plan(efficient, freeze=_freeze_encoder),
        ),
        "none": (
            "no attention, the same recipe",
            change_plan(correct, overrides=(("attention", "none"),)),
        ),
        **{name: (str(defect.__doc__), defect(correct)) for name, defect in defects.items()},
        "all": ("the published notebook: all of them", notebook),
    }


def properly(matrices: Matrices, experiment: Experiment, classes: int) -> float:
    """Return mIoU over the data set, with the experiment's labels mapped back to the original ones."""
    matrix = matrices.sum(axis=0)
    if experiment.plan.relabel is not None:  # truth and predictions are one too high, and 0 is ignored
        places = np.r_[1 : classes + 1, 0, classes + 1]
        matrix = matrix[np.ix_(places, places)]
        matrix[classes:] = 0
    return mean_iou(matrix, classes)


def as_reported(matrices: Matrices, experiment: Experiment, classes: int) -> float:
    """Return mIoU as the experiment's own code computes it."""
    if not experiment.per_image:
        return mean_iou(matrices.sum(axis=0), classes)
    return float(np.nanmean([mean_iou(matrix, classes) for matrix in matrices]))


def run_arm(study: Study, experiment: Experiment, training: str, seed: int) -> dict[str, Any]:
    """Train, unless a shared training is on disk, and score."""
    folder, start = study.folder(seed), study.pretrained(seed)
    plan, classes = experiment.plan, len(study.validation.classes)
    weights = trained_weights(folder, training, plan, study.training, seed, start)[experiment.checkpoint]
    name = f"{training}-{experiment.checkpoint}"
    matrices = own = scored(folder, name, plan, weights, study.validation, seed)
    if experiment.in_training_mode:
        name += "-training-mode"
        own = scored(folder, name, plan, weights, study.validation, seed, in_training_mode=True)
    return {
        "seed": seed,
        "training": training,
        "proper": properly(matrices, experiment, classes),
        "reported": as_reported(own, experiment, classes),
    }


def shared_training(name: str, experiments: dict[str, Experiment], images: Any) -> str:
    """Return the first experiment with the same training as this one."""
    plan = experiments[name].plan
    if plan.admit is not None and all(plan.admit(sample["image"]) for sample in images):
        plan = replace(plan, admit=None)  # no image is left out, so nothing changes
    return next((other for other, of in experiments.items() if of.plan == plan), name)


def summarize(study: Study, runs: dict[str, list[dict[str, Any]]], descriptions: dict[str, str]) -> None:
    """Write published_experiment.{json,md,svg}."""
    rows = {name: {column: [run[column] for run in of] for column in COLUMNS} for name, of in runs.items()}
    notes = []
    if {"efficient", "none"} <= rows.keys():
        notes.append(can_judge(rows, "proper", ("correct", "efficient"), "none"))
    shared = [name for name, of in runs.items() if of[0]["training"] != name]
    notes.append(f"Same training as `correct`, other scoring: {', '.join(shared)}.")
    table = markdown_table(rows, {"": descriptions}, COLUMNS, "correct") + "\n" + "\n\n".join(notes) + "\n"
    written = study.output / "published_experiment"
    content = {"settings": study.settings, "machine": describe_machine(), "runs": runs}
    write_json({"date": datetime.now(UTC).date().isoformat(), **content}, written.with_suffix(".json"))
    written.with_suffix(".md").write_text(table)
    dot_plot(
        rows, COLUMNS, "correct", f"The published experiment on {study.name}", written.with_suffix(".svg")
    )
    print(table)


def main() -> None:
    """Run what is missing, then write the table and the plot."""
    study = parse_study(__doc__)
    described = arms(study.validation.classes, study)
    experiments = {name: experiment for name, (_, experiment) in described.items()}
    rows = chosen(study, described, "correct")
    described = {name: of for name, of in described.items() if name in rows}
    trainings = {name: shared_training(name, experiments, study.training) for name in described}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in described}
    for seed in study.seeds:
        for name, (_, experiment) in described.items():
            path = study.folder(seed) / f"{name}.json"
            if not path.is_file():
                result = run_arm(study, experiment, trainings[name], seed)
                write_json(result, path)
                print(f"seed {seed} {name}: {result['proper']:.3f} ({result['reported']:.3f})", flush=True)
            runs[name].append(json.loads(Path(path).read_text()))
    summarize(study, runs, {name: description for name, (description, _) in described.items()})


def _freeze_encoder(model: Model) -> None:
    freeze(model, "encoder", None)


def _encoder(name: str) -> bool:
    return name.startswith("segformer.")


def _encoder_but_attention(name: str) -> bool:
    return _encoder(name) and ".attention." not in name


if __name__ == "__main__":
    main()
