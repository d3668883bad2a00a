"""Numbers of things, in messages."""

from hsa_factory.amounts import amount


def test_one_and_many():
    assert [amount(number, "sample") for number in (0, 1, 2, 1200)] == [
        "0 samples",
        "1 sample",
        "2 samples",
        "1,200 samples",
    ]
