import pytest
import torch

from strategies.cafedistill.similarity import LastHead, Similarities, cosines


def head(*vector: float, depth: int = 1, bias: tuple[float, ...] = (0.0, 0.0)) -> LastHead:
    return LastHead(depth, torch.tensor(vector), torch.tensor(bias))


def met(**heads: LastHead) -> Similarities:
    similarities = Similarities()
    similarities.update({int(name[1:]): h for name, h in heads.items()})
    return similarities


def test_cosines_equal_values_by_hand():
    table = cosines(torch.tensor([[3.0, 4.0], [4.0, 3.0], [-6.0, -8.0], [0.0, 0.0]]))
    assert table.dtype == torch.float64
    expected = [[1, 0.96, -1, 0], [0.96, 1, -0.96, 0], [-1, -0.96, 1, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(table, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


def test_cosines_handle_tiny_vectors():
    assert cosines(torch.tensor([[1e-30, 0.0], [1e-30, 1e-30]]))[0, 1].item() == pytest.approx(0.5**0.5)


def test_matrix_has_unit_diagonal_and_zero_for_unknown_pairs():
    similarities = met(c7=head(1, 0), c2=head(1, 1), c4=head(0, 0))
    half = 0.5**0.5
    expected = [[1, half, 0, 0], [half, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    matrix = similarities.matrix([2, 7, 4, 999])
    assert matrix.dtype == torch.float64
    torch.testing.assert_close(matrix, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)
    assert similarities.matrix([]).shape == (0, 0)


def test_update_keeps_pairs_that_are_not_in_the_round():
    similarities = met(c0=head(1, 0), c1=head(1, 0), c2=head(0, 1))
    similarities.update({1: head(0, 1), 2: head(0, -1)})
    assert similarities.matrix([0, 1, 2]).tolist() == [[1, 1, 0], [1, 1, -1], [0, -1, 1]]


def test_across_depths_compares_biases():
    heads = {
        0: head(1, 0, bias=(1, 0)),
        1: head(0, 1, bias=(1, 0)),
        2: head(1, 0, depth=2, bias=(-1, 0)),  # as long a vector as the first depth's, but of another place
        3: head(1, 0, 0, depth=3, bias=(0, 0)),
    }
    apart, across = Similarities(), Similarities()
    apart.update(heads)
    across.update(heads, across_depths=True)
    assert apart.matrix(range(4)).tolist() == torch.eye(4).tolist()
    assert len(apart) == 1
    assert across.matrix(range(4)).tolist() == [[1, 0, -1, 0], [0, 1, -1, 0], [-1, -1, 1, 0], [0, 0, 0, 1]]


def test_similarities_keep_only_pairs_of_the_same_round():
    similarities = Similarities()
    vectors = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    sampled = range(0, 1000, 10)
    similarities.update({client: head(*vectors[n].tolist()) for n, client in enumerate(sampled)})
    assert len(similarities) == 100 * 99 // 2
    assert similarities.state()["pairs"].shape == (4950, 2)
    assert similarities.matrix(range(1000)).count_nonzero() == 1000 + 100 * 99


def test_update_without_clients_changes_nothing():
    similarities = met(c0=head(1, 0), c1=head(1, 0))
    similarities.update({}, across_depths=True)
    assert len(similarities) == 1


def test_update_does_not_depend_on_client_order():
    vectors = torch.randn(12, 50, generator=torch.Generator().manual_seed(1))
    heads = {n: LastHead(n % 2, vector, vector[:5]) for n, vector in enumerate(vectors)}
    one, two = Similarities(), Similarities()
    one.update(heads, across_depths=True)
    two.update(dict(reversed(heads.items())), across_depths=True)
    assert torch.equal(one.state()["pairs"], two.state()["pairs"])
    assert torch.equal(one.state()["values"], two.state()["values"])


def test_state_round_trips():
    similarities = met(c30=head(1, 0), c4=head(1, 1), c11=head(0.3, 0.4))
    state = similarities.state()
    assert state["pairs"].tolist() == [[4, 11], [4, 30], [11, 30]]
    assert (state["pairs"].dtype, state["values"].dtype) == (torch.int64, torch.float64)
    other = met(c0=head(1, 0), c1=head(1, 0))
    other.load(state)
    assert torch.equal(other.matrix([0, 1, 4, 11, 30]), similarities.matrix([0, 1, 4, 11, 30]))
    assert len(other) == 3


def test_empty_state_round_trips():
    state = Similarities().state()
    assert state["pairs"].shape == (0, 2)
    similarities = met(c0=head(1, 0), c1=head(1, 0))
    similarities.load(state)
    assert len(similarities) == 0
