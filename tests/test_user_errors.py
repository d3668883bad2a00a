"""What is told in one message, and what keeps its traceback."""

import pytest

from hsa_factory.user_errors import UserError, explain, run_begins, setting_up


def test_a_user_error_is_a_value_error_with_an_exit_code():
    error = UserError("no fox")
    assert isinstance(error, ValueError) and (str(error), error.exit_code) == ("no fox", 2)
    assert UserError("stopped", exit_code=130).exit_code == 130


@pytest.mark.parametrize("error", [ValueError("no fox"), OSError("no fox"), ImportError("no fox")])
def test_what_is_raised_while_setting_up_is_about_what_the_user_gave(error):
    with pytest.raises(UserError, match="no fox") as told, setting_up():
        raise error
    assert told.value.__cause__ is error
    with pytest.raises(type(error)) as raised, setting_up():
        run_begins()
        raise error
    assert raised.value is error


@pytest.mark.parametrize("error", [TypeError("x"), RuntimeError("x"), BrokenPipeError("x"), KeyboardInterrupt("x")])
def test_others_pass_as_they_are(error):
    with pytest.raises(type(error)) as raised, setting_up():
        raise error
    assert raised.value is error


@pytest.mark.parametrize("begins", [False, True])
def test_two_kinds_are_told_at_any_time(begins):
    def fail(error):
        with setting_up():
            if begins:
                run_begins()
            raise error

    own = UserError("stopped", exit_code=130)
    with pytest.raises(UserError) as raised:
        fail(own)
    assert raised.value is own
    with pytest.raises(UserError, match=r"matplotlib.figure is not installed. .*'hsa-factory\[llamafactory\]'"):
        fail(ModuleNotFoundError("No module named 'matplotlib.figure'", name="matplotlib.figure"))


def test_each_set_up_begins_anew():
    with setting_up():
        run_begins()
    with pytest.raises(UserError), setting_up():
        raise ValueError("no fox")


def test_causes_are_told_once_each():
    try:
        try:
            raise KeyError("fox")
        except KeyError as error:
            raise ValueError("no animal") from error
    except ValueError as error:
        assert explain(error) == "no animal\n  because: 'fox'\n(HSA_FACTORY_DEBUG=1 shows where.)"
    assert explain(ValueError()) == "ValueError\n(HSA_FACTORY_DEBUG=1 shows where.)"
