"""Writes the tables and plots of what is finished."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hsa_factory.whole_files import write_whole

from .plan import Plan
from .plots import write_plots
from .tables import tables, write_tables


ALONE: list[dict[str, str]] = [{}]
"""The parts of a training that was never stopped. One without ``device`` was on the CPU, for which training files ask."""


def write_report(plan: Plan, out: Path) -> list[Path]:
    """Write tables, plots and ``summary.md`` into ``results`` of a folder of results, and return the files."""
    directory = out / "results"
    directory.mkdir(parents=True, exist_ok=True)
    made = tables(plan, out)
    paths = write_tables(directory, made)
    pictures = write_plots(directory)
    summary = directory / "summary.md"
    records = [record for stage in plan.stages if (record := stage.record(out)) is not None]
    about = {
        "form": plan.settings.name,
        "seeds": list(plan.settings.seeds),
        "parts": len(plan.stages),
        "finished": len(records),
        "folds": "test: reported, each part played once; dev: every choice; train: all training",
        "failed": sum(stage.failure(out) is not None for stage in plan.stages),
        "failures before they succeeded": sum(record["failures"] for record in records),
        "git revisions": sorted(
            {one["git"] for record in records for one in (record, *_parts(record)) if "git" in one}
        ),
        "CPU seconds": round(sum(map(_cpu_seconds, records))),
        "trained on": _devices(records),
        "versions": _versions(records),
    }
    write_whole(directory / "about.json", json.dumps(about, indent=1) + "\n")
    text = "\n\n".join(f"## {table.title}\n\n{table.markdown()}" for table in made if table.rows)
    write_whole(summary, f"# Results\n\n{text}\n")
    return [*paths, *pictures, directory / "about.json", summary]


def _parts(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the parts of a training, which may have been done by several processes; of other work there are none."""
    parts: Sequence[Mapping[str, Any]] = record["result"].get("parts", ())
    return parts


def _cpu_seconds(record: Mapping[str, Any]) -> float:
    """Return what all processes have spent: a record counts the last one only."""
    return float(record["cpu_seconds"] + sum(part["cpu_seconds"] for part in _parts(record)[:-1]))


def _devices(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many trainings each device has worked on: a part that was stopped can be taken up on another."""
    results = [record["result"] for record in records if "checkpoints" in record["result"]]
    devices = Counter(
        kind for result in results for kind in {part.get("device", "CPU") for part in result.get("parts", ALONE)}
    )
    return dict(sorted(devices.items()))


def _versions(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the versions with which the parts were made, where there were several with ``or`` between them."""
    found: dict[str, set[str]] = {}
    for record in records:
        for one in (record, *(part for part in _parts(record) if "versions" in part)):
            for name, version in (one["versions"] | {"python": one["python"]}).items():
                found.setdefault(name, set()).add(version)
    return {name: " or ".join(sorted(versions)) for name, versions in sorted(found.items())}
