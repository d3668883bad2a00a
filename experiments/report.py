"""Writes the tables and plots of what is finished."""

import json
from pathlib import Path

from hsa_factory.whole_files import write_whole

from .plan import Plan
from .plots import write_plots
from .stages import provenance
from .tables import tables, write_tables


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
        "git revisions": sorted({record["git"] for record in records}),
        "CPU seconds": round(sum(record["cpu_seconds"] for record in records)),
        "versions": provenance()["versions"],
    }
    write_whole(directory / "about.json", json.dumps(about, indent=1) + "\n")
    text = "\n\n".join(f"## {table.title}\n\n{table.markdown()}" for table in made)
    write_whole(summary, f"# Results\n\n{text}\n")
    return [*paths, *pictures, directory / "about.json", summary]
