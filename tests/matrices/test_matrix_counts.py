"""Parameter counts and reachable ranks of the method, exactly."""

import numpy as np
import pytest

from surm.matrices import FAMILIES, kronecker, options
from surm.matrices.algebra.fourier import smooth_length

from .cases import Case

VIT_B = 768  # 12 layers: 36 query, key and value maps, 24 query and value maps


@pytest.mark.parametrize(
    "name, chosen, maps, expected",
    [
        ("circulant", {}, 1, 2 * 768),
        ("circulant", {"hadamard": False}, 1, 768),
        ("circulant", {}, 36, 55_296),
        ("circulant", {}, 24, 36_864),
        ("skew_circulant", {}, 36, 55_296),
        ("toeplitz", {}, 36, 55_296),
        ("toeplitz", {"factors": 1}, 1, 768),
        ("toeplitz", {"factors": 1, "symmetric": False}, 1, 2 * 768 - 1),
        ("kronecker", {}, 36, 55_296),
        ("low_displacement_rank", {}, 24, 36_864),
        ("low_rank", {"rank": 1}, 24, 36_864),
        ("low_rank", {"rank": 2}, 24, 73_728),
        ("low_rank", {"rank": 4}, 24, 147_456),
        ("low_rank", {"rank": 8}, 24, 294_912),
        ("block_circulant", {}, 1, 768),
        ("block_circulant", {"block_size": 1}, 1, 768 * 768),
        ("c3a", {}, 24, 18_432),
        ("c3a", {"block_size": 256}, 1, 9 * 256),
        ("melora", {"rank": 2, "blocks": 4}, 1, 2 * (768 + 768)),
        ("monarch", {}, 1, 4 * (768 + 768)),
        ("monarch", {"rank": 1, "blocks": 16}, 1, 768 + 768),
        ("diagonal_circulant", {}, 1, 3 * 768),
        ("diagonal_circulant", {"block_size": 384}, 1, 4 * 384 + 2 * 768),
        ("lora_xs", {"rank": 25}, 24, 15_000),
        ("vera", {}, 24, 24 * (768 + 256)),
        ("adalora", {"rank": 8, "initial_rank": 12}, 1, 12 * (768 + 768 + 1)),
        ("dora_dynamic", {"rank": 3}, 1, 5 * (768 + 768 + 1)),  # ⌈1.5 · 3⌉
        ("lora2", {"rank": 8, "initial_rank": 8}, 1, 8 * (768 + 768) + 16 * 8 + 8),
        ("lorta", {"rank": 4}, 1, 4 * (768 + 64 + 12 + 2)),
        ("aurora", {}, 1, 2 * 768 * 64 + 64**3 + 64),
    ],
)
def test_counts_of_vit_b(name, chosen, maps, expected):
    assert maps * FAMILIES[name].num_params(VIT_B, VIT_B, **chosen) == expected


def test_low_displacement_rank_on_a_model_4096_wide_with_32_layers():
    assert 64 * FAMILIES["low_displacement_rank"].num_params(4096, 4096, rank=1) == 524_288


@pytest.mark.parametrize("rank", [1, 2, 3, 8, 16, 24, 256, 768])
def test_kronecker_costs_the_same_for_every_rank(rank):
    assert kronecker.num_params(VIT_B, VIT_B, rank=rank) == 2 * VIT_B


@pytest.mark.parametrize(
    "shape, rank", [((768, 768), 24), ((768, 3072), 24), ((12, 6), 2), ((7, 7), 1), ((13, 8), 1), ((1, 5), 1)]
)
def test_kronecker_default_rank(shape, rank):
    case = Case("kronecker", (), *shape)
    assert case.member("float32")["a"].shape == (1, rank, shape[1] // rank)


@pytest.mark.parametrize(
    "name, chosen, rank",
    [
        ("circulant", {}, 16),
        ("skew_circulant", {}, 16),
        ("toeplitz", {}, 16),
        ("toeplitz", {"factors": 1}, 16),
        ("low_displacement_rank", {"rank": 1}, 16),
        ("low_rank", {"rank": 3}, 3),
        ("kronecker", {"rank": 2}, 4),
        ("kronecker", {"rank": 4}, 16),
        ("kronecker", {"rank": 8}, 4),
        ("kronecker", {"rank": 2, "terms": 2}, 8),
        ("block_circulant", {"block_size": 4}, 16),
        ("c3a", {"block_size": 4}, 16),
        ("melora", {"rank": 2, "blocks": 4}, 8),
        ("monarch", {"rank": 2, "blocks": 4}, 8),
        ("monarch", {}, 16),
        ("diagonal_circulant", {}, 16),
        ("lora_xs", {"rank": 3}, 3),
        ("vera", {"rank": 3}, 3),
        ("adalora", {"rank": 2}, 3),
        ("lora2", {"rank": 8, "inner": 5}, 5),
        ("lorta", {"rank": 3}, 3),
        ("aurora", {"rank": 3}, 3),
    ],
)
def test_reachable_ranks(name, chosen, rank, float64):
    case = Case(name, tuple(chosen.items()), 16, 16)
    dense = case.family.to_dense(case.member(float64), 16, 16)
    assert np.linalg.matrix_rank(np.asarray(dense)) == rank


@pytest.mark.parametrize("name", FAMILIES)
def test_options_are_read_from_the_signature(name):
    assert FAMILIES[name].num_params(12, 12) == FAMILIES[name].num_params(12, 12, **options(name))


def test_smooth_lengths_are_the_smallest():
    numbers = np.arange(1, 2000)
    smooth = numbers.copy()
    for prime in (2, 3, 5, 7):
        for _ in range(11):
            smooth = np.where(smooth % prime == 0, smooth // prime, smooth)
    good = numbers[smooth == 1]
    for n in range(1, 1900):
        assert smooth_length(n) == good[good >= n][0]
