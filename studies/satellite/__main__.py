"""Train on windows of scenes with each attention, map other scenes in windows of several sizes, and tabulate.

python -m studies.satellite --data DIR

An interrupted study goes on where it was. The same command given twice at once shares the trainings between
the two processes; maps are made one at a time, once every training is done, so that their times are right.
"""

import json
import sys
from datetime import UTC, datetime
from typing import Any

from filelock import FileLock, Timeout

from ccsegformer.errors import CCSegformerError
from ccsegformer.report.machine import describe_machine
from ccsegformer.training.trainer import train
from studies.runs import write_json
from studies.satellite.mapping import mapped
from studies.satellite.options import Run, Study, parse_study
from studies.satellite.summary import draw, tell


def train_all(study: Study) -> None:
    """Train what is not trained yet; what another process is at is left to it, and waited for at the end."""
    study.output.mkdir(parents=True, exist_ok=True)
    for seconds in (0, -1):
        for run in study.runs:
            try:
                with FileLock(study.output / f"{run}.lock", timeout=seconds):
                    train_once(study, run)
            except Timeout:
                print(f"{run}: in another process", flush=True)


def train_once(study: Study, run: Run) -> None:
    """Train, or go on with a training that was broken off, or do nothing if there is its model."""
    folder = study.folder(run)
    if (folder / "model.safetensors").is_file():  # written last
        return
    resume = any(folder.glob("checkpoint-*/trainer_state.json"))
    result = train(
        study.recipe(run),
        study.data,
        folder,
        resume=resume,
        overwrite=not resume,
        progress=sys.stderr.isatty(),
    )
    print(f"{run}: trained in {result.seconds / 60:.1f} minutes", flush=True)


def map_all(study: Study) -> list[dict[str, Any]]:
    """A result for each training and each size of the windows that scenes are mapped with."""
    results = []
    for run in study.runs:
        log = json.loads((study.folder(run) / "training_log.json").read_text())
        for window in study.maps:
            with FileLock(study.output / "mapping.lock"):
                found = mapped(study.folder(run), study.validation, window)
            print(f"{run}, mapped with {window}: mIoU {found['mIoU']:.3f}", flush=True)
            training = {**run._asdict(), "training_seconds": log["seconds"]}
            results.append({**training, "map": window, **found})
    return results


def main() -> None:
    """Run what has not been run yet, then write the table and the plot."""
    study = parse_study(__doc__)
    try:
        train_all(study)
        if not study.maps:
            return
        results = map_all(study)
    except CCSegformerError as error:
        raise SystemExit(str(error)) from None
    names, machine = study.validation.classes.names, describe_machine()
    date = datetime.now(UTC).date().isoformat()
    content = {"date": date, "machine": machine, "settings": study.settings, "runs": results}
    write_json(content, study.output / "satellite.json")
    told = tell(study, results, names, str(machine["processor"]))
    (study.output / "satellite.md").write_text(told)
    draw(results, names, f"Maps of {study.data.name}", study.output / "satellite.svg")
    print(told)


if __name__ == "__main__":
    main()
