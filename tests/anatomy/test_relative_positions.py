"""Buckets of distances, against those of the models that have them."""

from __future__ import annotations

import pytest
import torch

from geomhooks.anatomy.relative_positions import bucket_of, relative_bias


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 7), (16, 40)])
def test_buckets_are_those_of_t5(buckets: int, furthest: int, both_ways: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-3000, 3000)
    expected = T5Attention._relative_position_bucket(distance, both_ways, buckets, furthest)
    assert torch.equal(bucket_of(distance, buckets, furthest, both_ways), expected)


def test_buckets_are_those_of_mpnet() -> None:
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    distance = torch.arange(-600, 600)
    expected = MPNetEncoder.relative_position_bucket(distance)
    assert torch.equal(bucket_of(distance, 32, 128, both_ways=True), expected)


def test_near_distances_have_buckets_of_their_own_and_far_ones_share_the_last() -> None:
    found = bucket_of(torch.arange(-130, 1).flip(0), 32, 128, both_ways=False)
    assert found[:16].tolist() == list(range(16))
    assert (found.diff() >= 0).all()
    assert found[128:].tolist() == [31, 31, 31]
    assert torch.equal(bucket_of(torch.arange(1, 9), 32, 128, both_ways=False), torch.zeros(8))


def test_bias_of_each_head() -> None:
    table = torch.arange(8.0).view(4, 2)
    bias = relative_bias(table, 4, 8, both_ways=True)
    found = bias(torch.tensor([5, 6]), torch.tensor([5, 6, 9]))
    # Buckets: the same token, a near one before, one after, and further ones after.
    assert found[0].tolist() == [[0.0, 6.0, 6.0], [2.0, 0.0, 6.0]]
    assert found[1].tolist() == [[1.0, 7.0, 7.0], [3.0, 1.0, 7.0]]
