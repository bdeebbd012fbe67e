"""Train each attention on windows of scenes, map other scenes with several window sizes, and tabulate.

python -m studies.satellite --data DIR

An interrupted study resumes. Two processes of the same command share the trainings. Maps are timed, so they
are made one at a time, after all trainings.
"""

import json
from datetime import UTC, datetime
from functools import partial
from typing import Any

from filelock import FileLock

from ccsegformer.errors import CCSegformerError
from ccsegformer.report.machine import describe_machine
from studies.runs import write_json
from studies.satellite.mapping import mapped
from studies.satellite.options import Run, Study, parse_study
from studies.satellite.summary import draw, markdown_page
from studies.sharing import share, train_once


def train_all(study: Study) -> None:
    """Train what is missing, shared with other processes of the same command."""
    share({study.folder(run): partial(train_run, study, run) for run in study.runs})


def train_run(study: Study, run: Run) -> None:
    """Train or resume a run, unless it has finished."""
    train_once(study.recipe(run), study.data, study.folder(run))


def map_all(study: Study) -> list[dict[str, Any]]:
    """Return one result for each training and mapping window."""
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
    """Run what is missing, then write the table and the plot."""
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
    page = markdown_page(study, results, names, str(machine["processor"]))
    (study.output / "satellite.md").write_text(page)
    draw(results, names, f"Maps of {study.data.name}", study.output / "satellite.svg")
    print(page)


if __name__ == "__main__":
    main()
