import pytest
import torch

from strategies.cafedistill.schedule import choose, mean_conflict, quota, select

FOUR_EXITS = dict.fromkeys(range(10), 3)
THREE_EXITS = dict.fromkeys(range(10), 2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_groups(n: int = 6) -> torch.Tensor:
    """Similarity 0.9 inside the even and inside the odd clients, -0.5 between them."""
    parity = torch.arange(n) % 2
    same = parity.unsqueeze(0) == parity.unsqueeze(1)
    return torch.where(same, 0.9, -0.5).double().fill_diagonal_(1.0)


def no_similarity(clients) -> torch.Tensor:
    return torch.eye(len(clients), dtype=torch.float64)


@pytest.mark.parametrize(
    ("round_", "expected"), [(0, 0), (10, 2), (50, 10), (75, 15), (149, 29), (150, 30), (151, 30), (299, 30)]
)
def test_quota_of_four_exits(round_, expected):
    assert quota(round_, 300, FOUR_EXITS) == expected


@pytest.mark.parametrize(("round_", "expected"), [(75, 10), (149, 19), (150, 20), (299, 20)])
def test_quota_of_three_exits(round_, expected):
    assert quota(round_, 300, THREE_EXITS) == expected


@pytest.mark.parametrize(
    ("admitted_by", "expected"),
    [(1.0, [0, 2, 4, 6, 8]), (0.5, [0, 4, 8, 12, 16]), (0.1, [0, 20, 20, 20, 20]), (0.3, [0, 6, 13, 20, 20])],
)
def test_quota_by_the_share_of_rounds_after_which_all_are_admitted(admitted_by, expected):
    assert [quota(t, 10, THREE_EXITS, admitted_by=admitted_by) for t in range(5)] == expected


def test_quota_counts_the_students_of_unequal_depths():
    students = {0: 0, 1: 1, 2: 3}
    assert [quota(t, 8, students) for t in range(8)] == [0, 1, 2, 3, 4, 4, 4, 4]
    assert quota(3, 8, {0: 0, 1: 0}) == 0


def test_quota_with_conflict_equals_the_published_formula():
    # floor(m n clip(2t/T (1 - 1/m) + C, 0, 1 - 1/m)) with m = 4, n = 10, T = 300
    assert quota(75, 300, FOUR_EXITS, conflict=-0.1) == 11  # 40 * (0.375 - 0.1)
    assert quota(10, 300, FOUR_EXITS, conflict=-0.1) == 0
    assert quota(150, 300, FOUR_EXITS, conflict=-0.1) == 26
    assert quota(299, 300, FOUR_EXITS, conflict=-0.1) == 30  # 2t/T itself is not cut at 1


def test_mean_conflict_is_the_mean_of_the_negative_part():
    assert mean_conflict(torch.tensor([[1.0, -0.5, 0.3], [-0.5, 1.0, -0.4], [0.3, -0.4, 1.0]])) == pytest.approx(-0.2)
    assert mean_conflict(torch.eye(3)) == 0


@pytest.mark.parametrize("seed", range(8))
def test_choose_takes_similar_clients_first(seed):
    order = choose(two_groups(), 6, seeded(seed))
    assert sorted(order) == list(range(6))
    assert len({n % 2 for n in order[:3]}) == len({n % 2 for n in order[3:]}) == 1


def test_choose_uses_the_mean_similarity_to_all_chosen():
    similarities = torch.tensor(
        [[1.0, 0.9, 0.0, 0.3], [0.9, 1.0, 0.5, 0.3], [0.0, 0.5, 1.0, 0.0], [0.3, 0.3, 0.0, 1.0]]
    )
    first = {choose(similarities, 4, seeded(seed))[0]: choose(similarities, 4, seeded(seed)) for seed in range(30)}
    # after 0 and 1, client 3 has the mean 0.3 and client 2, though closer to 1, the mean 0.25
    assert first == {0: [0, 1, 3, 2], 1: [1, 0, 3, 2], 2: [2, 1, 0, 3], 3: first[3]}
    assert first[3] in ([3, 0, 1, 2], [3, 1, 0, 2])


def test_choose_breaks_ties_by_the_seed():
    drawn = [tuple(choose(torch.eye(5), 2, seeded(seed))) for seed in range(200)]
    assert drawn == [tuple(choose(torch.eye(5), 2, seeded(seed))) for seed in range(200)]
    assert len(set(drawn)) == 20
    assert choose(torch.eye(5), 0, seeded()) == []


def test_select_admits_shallow_students_first():
    assert select(0, {}, FOUR_EXITS, no_similarity, seeded()) == dict.fromkeys(range(10), 0)
    for admitted in range(31):
        unlocked = select(admitted, {}, FOUR_EXITS, no_similarity, seeded())
        assert sum(unlocked.values()) == admitted
        assert max(unlocked.values()) - min(unlocked.values()) <= 1
    assert select(99, {}, FOUR_EXITS, no_similarity, seeded()) == FOUR_EXITS


@pytest.mark.parametrize("seed", range(4))
def test_select_fills_a_partial_level_with_similar_clients(seed):
    clients = range(10, 16)
    calls = []

    def similarities(candidates):
        calls.append(list(candidates))
        return two_groups()

    unlocked = select(9, {}, dict.fromkeys(clients, 2), similarities, seeded(seed))
    deeper = {client for client, count in unlocked.items() if count == 2}
    assert deeper in ({10, 12, 14}, {11, 13, 15})
    assert all(count == 1 for client, count in unlocked.items() if client not in deeper)
    assert calls == [list(clients)]


def test_select_keeps_unchosen_clients_at_the_full_level():
    before = dict.fromkeys(range(10), 3)
    unlocked = select(15, before, FOUR_EXITS, no_similarity, seeded())
    assert sorted(unlocked.values()) == [1] * 5 + [2] * 5


def test_select_takes_no_level_away_before_the_first_is_full():
    before = {0: 1, 1: 2, 4: 1}
    unlocked = select(2, before, FOUR_EXITS, no_similarity, seeded())
    drawn = set(choose(torch.eye(10), 2, seeded()))
    assert unlocked == {client: max(before.get(client, 0), int(client in drawn)) for client in range(10)}


def test_select_caps_levels_of_a_client_that_became_shallower():
    assert select(0, {0: 3, 1: 3}, {0: 1, 1: 0}, no_similarity, seeded()) == {0: 1, 1: 0}


def test_select_skips_levels_that_a_client_lacks():
    students = {0: 0, 1: 1, 2: 2, 3: 3, 4: 3}
    assert select(4, {}, students, no_similarity, seeded()) == {0: 0, 1: 1, 2: 1, 3: 1, 4: 1}
    assert select(7, {}, students, no_similarity, seeded()) == {0: 0, 1: 1, 2: 2, 3: 2, 4: 2}
    assert select(9, {}, students, no_similarity, seeded()) == students
    partly = select(8, {}, students, no_similarity, seeded())
    assert (partly[1], partly[2], sorted((partly[3], partly[4]))) == (1, 2, [2, 3])
    assert select(5, {}, {0: 0, 1: 0}, no_similarity, seeded()) == {0: 0, 1: 0}


def test_select_does_not_depend_on_mapping_order():
    students = {client: 1 + client % 3 for client in range(12)}
    before = {3: 1, 8: 1}
    one = select(7, before, students, no_similarity, seeded(5))
    two = select(7, dict(reversed(before.items())), dict(reversed(students.items())), no_similarity, seeded(5))
    assert list(one.items()) == list(two.items())
    assert any(select(7, before, students, no_similarity, seeded(seed)) != one for seed in range(6, 12))
