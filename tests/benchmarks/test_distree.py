import pytest

from benchmarks.distree import draws

COSTS = (1.0, 19.0, 37.0, 51.0, 69.0, 82.0, 100.0)


@pytest.mark.parametrize("cost", [60.0, 72.4, 80.0])
def test_all_draws_have_requested_cost(cost: float) -> None:
    found = list(draws(cost, COSTS))
    assert len(set(found)) == len(found) > 100
    assert all(min(shares) >= 0 and shares[0] == 0 for shares in found)
    for shares in found:
        mean = sum(share * own for share, own in zip(shares, COSTS, strict=True)) / sum(shares)
        assert mean == pytest.approx(cost)
