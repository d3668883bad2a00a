"""Which settings a command line means: how large, and in which environment."""

from dataclasses import replace

from hsa_factory.user_errors import UserError

from .settings import FORMS, Phase, Settings, Training


BABY_AI = Settings(
    name="babyai",
    environment="babyai",
    options={"levels": ["KeyCorridorS6R3", "BossLevel"]},
    gold_games=4000,
    test_games=300,
    step_limit=200,
    positions=32_768,
    training=Training(rows=1, row_tokens=4096),
    own_games=0,
)
QUICK_BABY_AI = replace(
    FORMS["quick"],
    name="quick-babyai",
    environment="babyai",
    options={"levels": ["GoToLocal", "PickupLoc", "KeyCorridorS3R1"]},  # the large ones need more than ten minutes
    step_limit=64,
)
LONG = Settings(
    name="long",
    options={"rooms": 11, "doors": True, "distractors": 10, "ingredients": [1, 2, 3]},
    words=True,
    gold_games=20_000,
    step_limit=100,
    positions=32_768,
    training=Training(phases=(Phase(4000, 3e-3), Phase(4000, 2e-3)), row_tokens=4096),
    own_games=0,
)

_FORMS = {
    ("full", "cooking"): FORMS["full"],
    ("quick", "cooking"): FORMS["quick"],
    ("long", "cooking"): LONG,
    ("full", "babyai"): BABY_AI,
    ("quick", "babyai"): QUICK_BABY_AI,
}


def all_forms() -> dict[str, Settings]:
    """Return the settings of every form, by their own name."""
    return {settings.name: settings for settings in _FORMS.values()}


def settings_of(form: str, environment: str) -> Settings:
    """Return the settings of a form.

    Args:
        form: ``full``, ``quick`` or ``long``.
        environment: A name of ``experiments.environments.ENVIRONMENTS``.

    Raises:
        UserError: If there is no such form in this environment.
    """
    if (form, environment) not in _FORMS:
        raise UserError(
            f"--{form} has no form in --environment {environment}, whose own episodes have 1,000 to 4,000 tokens: leave it out."
        )
    return _FORMS[form, environment]
