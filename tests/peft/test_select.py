import pytest
from flax import nnx

from surm import InputError
from surm.peft import select


def test_paths_of_linear_layers_are_in_order(small_vit):
    paths = list(select.linear_layers(small_vit))
    assert paths[:2] == ["blocks.0.attention.key", "blocks.0.attention.output"]
    assert paths.index("blocks.0.mlp.up") < paths.index("blocks.1.attention.key")
    assert "embed.patch" in paths and "head" in paths and "norm" not in paths


def test_patterns_match_whole_paths(small_vit):
    paths = select.linear_layers(small_vit)
    assert select.matching([r"blocks\.1\..*\.(query|value)"], paths, "linear layer") == [
        "blocks.1.attention.query",
        "blocks.1.attention.value",
    ]
    with pytest.raises(InputError, match="no linear layer as a whole, only a part of blocks.0.attention.query, bl"):
        select.matching(["attention.query"], paths, "linear layer")
    with pytest.raises(
        InputError, match="a regular expression, matches no linear layer; nearest: .*blocks.0.attention.query"
    ):
        select.matching(["attention.qeury"], paths, "linear layer")


def test_each_pattern_must_match_something(small_vit):
    with pytest.raises(InputError, match="'nothing'"):
        select.matching(["head", "nothing"], select.linear_layers(small_vit), "linear layer")


def test_a_broken_pattern_is_named(small_vit):
    with pytest.raises(InputError, match="not a regular expression"):
        select.matching(["("], select.linear_layers(small_vit), "linear layer")


def test_under_takes_all_variables_of_a_module(small_vit):
    assert select.under(["head"], select.variables(small_vit)) == ["head.bias", "head.kernel"]
    assert select.under([r"blocks\.0\.norm1\.scale"], select.variables(small_vit)) == ["blocks.0.norm1.scale"]


def test_dotted_and_parts_are_inverse():
    assert select.parts(select.dotted(("blocks", 0, "head"))) == ("blocks", 0, "head")


class Ring(nnx.Module):
    """Two layers, of which one comes twice, and a way back to the whole."""

    def __init__(self):
        self.first = nnx.Dict(inner=nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0)))
        self.again = nnx.List([self.first["inner"]])
        self.back = nnx.Dict(whole=self)


def test_a_walk_goes_down_before_it_goes_on_and_ends_where_it_meets_a_module_again():
    kernel = ("inner", "kernel")
    assert [path for path, _ in select.walk(Ring())] == [
        (), ("first",), ("first", "inner"), ("first", *kernel),
        ("again",), ("again", 0), ("again", 0, "kernel"),
        ("back",), ("back", "whole"),
    ]  # fmt: skip
