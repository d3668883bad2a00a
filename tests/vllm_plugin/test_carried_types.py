"""What a request says of its prompt, and what is refused of it."""

import numpy as np
import pytest

from hsa_factory import HSAConfig
from hsa_factory.vllm.types import InvalidTypes, check_fields, fields_of, types_of


def test_what_is_written_is_read():
    config = HSAConfig(noise_turns=1, rules=[{"role": "user", "type": "NOISE"}])
    types, turns = [0, 0, 1, 2, 2], [0, 0, 3, 3, 4]
    fields = fields_of(types, turns, ["system", "user"])
    assert fields == {"hsa_types": "00122", "hsa_turns": "0*2,3*2,4*1", "hsa_roles": "system,user"}
    read = types_of(fields, 5, config)
    assert read.types.tolist() == types and read.turns.tolist() == turns and read.roles == ("system", "user")


def test_without_fields_all_tokens_have_the_default_type():
    read = types_of({"of": "others"}, 3, HSAConfig(default_type="LANDMARK"))
    assert read.types.tolist() == [1, 1, 1] and read.turns is None and read.roles is None


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"hsa_types": "01"}, "2 digits, but the prompt has 3 tokens"),
        ({"hsa_types": "0123"}, "'3' at token 3"),
        ({"hsa_types": "01é"}, "at token 2"),
        ({"hsa_types": ""}, "0 digits"),
        ({"hsa_types": [0, 1, 2]}, "must be a text, got list"),
        ({"hsa_type": "012"}, "hsa_type is no field of HSA"),
        (
            {"HSA_Types": "012"},
            "HSA_Types is no field of HSA. Allowed: hsa_types, hsa_turns, hsa_roles. Did you mean 'hsa_types'",
        ),
        ({"semantic_type": "NOISE"}, "semantic_type is no field of HSA"),
        ({"hsa_turns": "0*2"}, "covers 2 tokens, but the prompt has 3"),
        ({"hsa_turns": "0*1,9*2000000000"}, "covers 2000000001 tokens"),
        ({"hsa_turns": "1*1,0*2"}, "falls from 1 to 0"),
        ({"hsa_turns": "0*-3"}, "below 0"),
        ({"hsa_turns": "0 3"}, "number*tokens"),
        ({}, "hsa_turns is needed"),
        ({"hsa_roles": "system,usr"}, "hsa_roles: unknown role 'usr'. Did you mean 'user'"),
        ({"hsa_roles": "user,,user"}, "hsa_roles: unknown role ''"),
        ({"hsa_roles": "user,\ud800"}, r"hsa_roles: unknown role '\\ud800'"),
        ({"hsa_\ud800": "1"}, r"hsa_\\ud800 is no field of HSA"),
    ],
)
def test_what_does_not_fit_is_refused(fields, complaint):
    with pytest.raises(InvalidTypes, match=complaint.replace("*", r"\*")):
        types_of(fields, 3, HSAConfig(noise_turns=1))


def test_roles_are_what_clients_call_them():
    """A tool's message counts as the rules count it, whoever wrote its role."""
    config = HSAConfig(rules=[{"role": "observation", "turn": 1, "type": "NOISE"}])
    for text, roles in (("developer, user,tool", ("system", "user", "observation")), ("", ())):
        assert types_of({"hsa_roles": text}, 3, config).roles == roles


def test_what_no_rule_could_read_is_refused():
    with pytest.raises(InvalidTypes, match="hsa_turns: the rules of this model count no turns"):
        types_of({"hsa_turns": "0*3"}, 3, HSAConfig())
    with pytest.raises(InvalidTypes, match="hsa_roles: this model has no rules"):
        types_of({"hsa_roles": "user"}, 3, HSAConfig())


def test_some_of_it_is_refused_before_the_prompt_is_known():
    check_fields({"hsa_types": "012", "hsa_turns": "0*99999999"})  # no memory is asked for
    for fields in ({"hsa_types": "9"}, {"hsa_turns": "x"}, {"hsa_other": ""}):
        with pytest.raises(InvalidTypes):
            check_fields(fields)


def test_types_are_digits_of_any_array():
    assert fields_of(np.array([2, 1], np.uint8)) == {"hsa_types": "21"}
