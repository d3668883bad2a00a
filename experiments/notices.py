"""What a user should know of a folder of results before a run goes on in it."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .plan import Plan
from .reading import read_or_none
from .settings import Settings
from .stages import DONE, installed_versions


def settings_file(plan: Plan, out: Path) -> Path:
    """Return where the settings of a form stand in a folder of results."""
    return out / f"settings-{plan.settings.name}.json"


def notices(plan: Plan, out: Path) -> Iterator[str]:
    """Yield what was begun otherwise than it would be now, or is broken; nothing of a new folder."""
    for stage in plan.stages:
        if stage.is_broken(out):
            yield f"{stage.name}: {stage.folder(out) / DONE} is not whole; this part counts as not done, and is done anew."
    changed = _changed_settings(plan, out)
    if changed:
        yield (
            f"{out} was begun with other settings ({', '.join(changed)}): parts that depend on them count as not done; "
            "the former ones stay, and are in no table."
        )
    for (name, version, now), parts in sorted(_other_versions(plan, out).items()):
        yield (
            f"{parts} of the finished parts were made with {name} {version}, here is {now}: they stand in the same tables "
            "(about.json names all versions)."
        )


def _changed_settings(plan: Plan, out: Path) -> list[str]:
    """Return the names of settings that had other values when a run was last begun."""
    former = read_or_none(settings_file(plan, out))
    if former is None:
        return []
    now, usual = (json.loads(json.dumps(settings.to_dict())) for settings in (plan.settings, Settings()))
    former = {**usual, **former}  # what an older version could not choose was as usual
    return sorted(key for key in former if former[key] != now.get(key))


def _other_versions(plan: Plan, out: Path) -> Counter[tuple[str, str, str]]:
    """Count the finished parts by package, version and version now, where these two differ."""
    here = installed_versions()
    found: Counter[tuple[str, str, str]] = Counter()
    for stage in plan.stages:
        made = (stage.record(out) or {}).get("versions", {})
        found.update((name, made[name], here[name]) for name in made.keys() & here if made[name] != here[name])
    return found
