"""Overrides combined, and what runs are called."""

import itertools

import jaxtyping
import pytest

from surm import InputError, sweeps
from surm.rundir import names

FAMILIES = {"peft.family": ["circulant", "toeplitz"]}


def test_a_product_has_every_pair_and_the_last_key_changes_fastest():
    got = sweeps.product(FAMILIES, seed=range(3))
    assert [(run["peft.family"], run["seed"]) for run in got] == [
        (family, seed) for family in ("circulant", "toeplitz") for seed in range(3)
    ]


def test_a_zip_walks_through_all_keys_together():
    got = sweeps.zipped(FAMILIES, {"optim.learning_rate": [8e-3, None]})
    assert got == [
        {"peft.family": "circulant", "optim.learning_rate": 8e-3},
        {"peft.family": "toeplitz", "optim.learning_rate": None},
    ]


def test_they_combine():
    pairs = sweeps.zipped(FAMILIES, {"optim.learning_rate": [8e-3, None]})
    got = sweeps.product(pairs, seed=[0, 1])
    assert len(got) == 4 and got[1] == {"peft.family": "circulant", "optim.learning_rate": 8e-3, "seed": 1}
    assert sweeps.zipped(pairs, seed=[5, 6])[1] == {"peft.family": "toeplitz", "optim.learning_rate": None, "seed": 6}
    chained = sweeps.product(itertools.chain(pairs, [{}]), iter([{"seed": 1}]))
    assert chained == [*(pair | {"seed": 1} for pair in pairs), {"seed": 1}]
    assert sweeps.product() == [{}]


@pytest.mark.parametrize(
    ("combine", "message"),
    [
        (lambda: sweeps.zipped(FAMILIES, seed=[0, 1, 2]), "values for every key, given 2 of peft.family, 3 of seed"),
        (lambda: sweeps.product(seed=3), "seed is 3, expected a list"),
        (lambda: sweeps.product({"peft.family": "circulant"}), "peft.family is 'circulant', expected a list"),
        (lambda: sweeps.product(FAMILIES, seed=[]), "seed is an empty list"),
        (lambda: sweeps.product({"seed": [0]}, seed=[1]), "sets 'seed' twice in one run"),
        (lambda: sweeps.zipped([{}, {"seed": 0}], seed=[1, 2]), "sets 'seed' twice in one run"),
    ],
)  # fmt: skip
def test_what_does_not_combine_is_refused(combine, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # or the annotations refuse some of them first
    with pytest.raises(InputError, match=message):
        combine()


def test_a_name_depends_on_the_overrides_alone():
    assert names.name({"seed": 0, "peft.family": "toeplitz"}) == "family=toeplitz,seed=0"
    assert names.name({"peft.family": "toeplitz", "seed": 0}) == "family=toeplitz,seed=0"
    assert names.name({"peft.options": "rank=8", "optim.learning_rate": 8e-3}) == "learning_rate=0.008,options=rank=8"
    assert names.name({"model.dropout": 0.1, "peft.dropout": None}) == "model.dropout=0.1,peft.dropout=None"
    assert names.name({}) == "defaults"


def test_names_of_values_that_need_care_are_short_safe_and_unique():
    values = [r".*\.(query|value)", r".*\.(query,value)", ".*/(query value)", "rank=8,terms=2", "rank=8_terms=2", "é",
              "", "x" * 300, "x" * 301]  # fmt: skip
    called = [names.name({"peft.targets": value, "seed": 0}) for value in values]
    assert len(set(called)) == len(values)
    for name in called:
        assert len(name) <= 110 and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._,=-"), name
