import time

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from common.flower.local_grid import LocalGrid
from common.messages import protocol
from common.messages.protocol import ClientReport, NodeReport, Order
from strategies.engine import roster as engine_roster
from strategies.engine.roster import Roster, sample, stratify


def report(client: int, depth: int = 1, examples: int = 10, refused: str = "") -> ClientReport:
    return ClientReport(client, depth, "because", examples, refused)


@pytest.mark.parametrize(
    ("sizes", "number", "expected"),
    [
        ({1: 25, 2: 25, 3: 25, 4: 25}, 8, {1: 2, 2: 2, 3: 2, 4: 2}),
        ({1: 40, 2: 30, 3: 20, 4: 10}, 10, {1: 4, 2: 3, 3: 2, 4: 1}),
        ({1: 97, 2: 1, 3: 1, 4: 1}, 10, {1: 7, 2: 1, 3: 1, 4: 1}),
        ({1: 1, 2: 99}, 5, {1: 1, 2: 4}),
        ({1: 5, 3: 5}, 5, {1: 3, 3: 2}),
        ({1: 3, 2: 2}, 100, {1: 3, 2: 2}),
        ({2: 7}, 3, {2: 3}),
        ({1: 10, 2: 10, 3: 10}, 10, {1: 4, 2: 3, 3: 3}),
        ({1: 1, 2: 1, 3: 8}, 9, {1: 1, 2: 1, 3: 7}),
        ({}, 4, {}),
    ],
)
def test_strata_get_proportional_share_and_at_least_one(sizes, number, expected):
    assert stratify(sizes, number) == expected


def test_every_allocation_is_valid():
    for sizes in ({1: 3, 2: 17, 3: 1}, {1: 1, 2: 1, 3: 1, 4: 50}, {1: 9, 4: 2}):
        for number in range(len(sizes), 60):
            quotas = stratify(sizes, number)
            assert sum(quotas.values()) == min(number, sum(sizes.values()))
            assert set(quotas) == set(sizes)
            assert all(1 <= quota <= sizes[depth] for depth, quota in quotas.items())


def test_sampling_depends_only_on_seed_and_round():
    clients = [report(c, depth=1 + c % 3) for c in range(30)]
    first = sample(clients, 6, seed=1, round_=4)
    assert first == sample(list(clients), 6, seed=1, round_=4)
    assert [c.client for c in first] == sorted(c.client for c in first)
    assert sorted(c.part for c in first) == [1, 1, 2, 2, 3, 3]
    assert first != sample(clients, 6, seed=1, round_=5)
    assert first != sample(clients, 6, seed=2, round_=4)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_all_clients_are_sampled_with_fewer_places_than_tiers(number):
    clients = [report(c, depth=1 + c % 3) for c in range(12)]
    rounds = [sample(clients, number, 1, round_) for round_ in range(60)]
    assert all(len({c.client for c in chosen}) == number for chosen in rounds)
    assert {c.client for chosen in rounds for c in chosen} == set(range(12))


def roster(nodes: dict[int, NodeReport], count: int = 12) -> Roster:
    homes = {c.client: node for node, report in nodes.items() for c in report.clients}
    return Roster(count, homes=homes, nodes=nodes)


def test_assignment_balances_cost():
    people = [report(c) for c in range(7)]
    cost = dict(enumerate((8.0, 1.0, 1.0, 4.0, 4.0, 2.0, 4.0)))
    dealt = roster({20: NodeReport(1, True), 10: NodeReport(0, True)}).deal(people, cost)
    assert {n: [c.client for c in members] for n, members in dealt.items()} == {10: [0, 6, 1], 20: [3, 4, 5, 2]} or (
        {n: sum(cost[c.client] for c in members) for n, members in dealt.items()} == {10: 12.0, 20: 12.0}
    )


def test_assignment_does_not_depend_on_node_ids():
    people = [report(c) for c in range(9)]
    cost = {c: float(1 + c % 4) for c in range(9)}
    one = roster({5: NodeReport(0, True), 9: NodeReport(1, True)}).deal(people, cost)
    two = roster({77: NodeReport(1, True), 99: NodeReport(0, True)}).deal(people, cost)
    assert (one[5], one[9]) == (two[99], two[77])


def test_bound_clients_stay_on_node_and_idle_nodes_get_none():
    home = report(3)
    nodes = {1: NodeReport(0, False, (home,)), 2: NodeReport(1, True), 4: NodeReport(2, False, (report(4),))}
    dealt = roster(nodes).deal([home, report(0)], {3: 1.0, 0: 1.0})
    assert dealt == {1: [home], 2: [report(0)]}


def test_client_whose_node_has_gone_is_dealt_to_none():
    there, gone = report(3), report(5)
    assert roster({1: NodeReport(0, False, (there,))}).deal([gone, there], {3: 1.0, 5: 1.0}) == {1: [there]}


class Answering(LocalGrid):
    """A grid whose nodes answer queries with prepared reports (`None`: an error, text: an invalid reply)."""

    def __init__(self, answers: list) -> None:
        super().__init__(None, [{}] * len(answers))
        self.answers = dict(zip(self.contexts, answers, strict=True))
        self.asked: list[tuple[int, Order]] = []
        self.app = self.answer

    def answer(self, message: Message, context) -> Message:
        order, _ = protocol.unpack_order(message.content)
        self.asked.append((context.node_id, order))
        answer = self.answers[context.node_id]
        if answer is None:
            return Message(Error(1, "broken"), reply_to=message)
        if isinstance(answer, str):
            return Message(protocol.pack_order(Order(answer, "{}")), reply_to=message)
        if answer.roaming:
            answer = NodeReport(answer.partition, True, tuple(report(c) for c in order.describe))
        return Message(protocol.pack_report(answer), reply_to=message)


def discovered(answers: list, count: int = 5, min_nodes: int = 1) -> tuple[Roster, Answering]:
    grid, people = Answering(answers), Roster(count)
    people.discover(grid, Order("r", "{}"), min_nodes, wait=0.0, deadline=5.0)
    return people, grid


def test_nodes_share_queries_about_unbound_clients():
    people, grid = discovered([NodeReport(0, True), NodeReport(1, True)])
    assert [c.client for c in people.available()] == [0, 1, 2, 3, 4]
    described = [order.describe for _, order in grid.asked]
    assert sorted(described) == [(0, 2, 4), (1, 3)]  # one message to each node
    assert people.homes == {}  # any node may host them
    before = len(grid.asked)
    people.discover(grid, Order("r", "{}"), 1, 0.0, 5.0)
    assert len(grid.asked) == before


def test_clients_of_a_failed_node_are_asked_about_again():
    people, grid = discovered([None, NodeReport(1, True)])
    assert [c.client for c in people.available()] == [0, 1, 2, 3, 4]
    assert [order.describe for _, order in grid.asked] == [(0, 2, 4), (1, 3), (0, 2, 4)]


def test_client_nodes_are_recorded_and_refusals_logged(flower_log):
    refused = report(8, 0, refused="nothing fits: tier 1 needs 5.0 MB of 1.0 MB")
    people, _ = discovered([NodeReport(0, False, (report(7, 2), refused)), NodeReport(1, False, (report(9, 1),))])
    assert [c.client for c in people.available()] == [7, 9]
    assert set(people.homes) == {7, 8, 9}
    assert "client 8 is left out: nothing fits: tier 1 needs 5.0 MB of 1.0 MB" in flower_log


def test_node_with_failed_or_invalid_report_is_left_out(flower_log):
    people, _ = discovered([None, NodeReport(1, False, (report(9),)), "nonsense"])
    assert [c.client for c in people.available()] == [9]
    assert sum("broken" in line for line in flower_log) == 1
    assert sum("cannot be read" in line for line in flower_log) == 1


def test_node_whose_query_failed_does_not_count():
    with pytest.raises(TimeoutError, match=r"1 nodes can take part after 0 s, round\.min-nodes asks for 2"):
        discovered([None, NodeReport(1, False, (report(9),))], min_nodes=2)


def test_clients_leave_and_return_with_node():
    people, grid = discovered([NodeReport(0, False, (report(1),)), NodeReport(1, False, (report(2),))])
    node, context = next(iter(grid.contexts.items()))
    del grid.contexts[node]
    people.discover(grid, Order("r", "{}"), 1, 0.0, 5.0)
    assert [c.client for c in people.available()] == [2]
    grid.contexts[node] = context
    people.discover(grid, Order("r", "{}"), 1, 0.0, 5.0)
    assert [c.client for c in people.available()] == [1, 2]


def test_resumed_run_keeps_assignment_of_checkpoint():
    grid, people = Answering([NodeReport(0, False, (report(1, depth=3),))]), Roster(5)
    people.reports[1] = report(1, depth=2)
    people.discover(grid, Order("r", "{}"), 1, 0.0, 5.0)
    assert people.available() == [report(1, depth=2)]
    people.update([report(1, depth=1)])
    assert people.available() == [report(1, depth=1)]


def test_too_few_nodes_are_reported():
    with pytest.raises(TimeoutError, match=r"1 nodes after 0 s, round\.min-nodes asks for 2"):
        discovered([NodeReport(0, True)], min_nodes=2)


def test_later_rounds_go_on_with_the_nodes_that_are_left():
    people, grid = discovered([NodeReport(c, False, (report(c),)) for c in range(3)], min_nodes=3)
    for node in list(grid.contexts)[:2]:
        del grid.contexts[node]
    people.discover(grid, Order("r", "{}"), 3, wait=0.0, deadline=5.0)
    assert [c.client for c in people.available()] == [2]
    with pytest.raises(TimeoutError, match="1 nodes after 0 s, a round needs 2"):
        people.discover(grid, Order("r", "{}"), 3, wait=0.0, deadline=5.0, later=2)
    grid.contexts.clear()
    with pytest.raises(TimeoutError, match="0 nodes after 0 s, a round needs 1"):
        people.discover(grid, Order("r", "{}"), 3, wait=0.0, deadline=5.0)


def test_run_goes_on_while_the_quorum_answers(prepare_run):
    changes = {"clients.per-node": 1, "round.min-nodes": 6, "round.quorum": 0.5, "round.wait": 0.0}
    run = prepare_run(changes, [{"partition-id": p} for p in range(6)])
    on_round = run.on_round

    def leave(strategy, record):
        on_round(strategy, record)
        if record.round == 1:
            run.grid.contexts.pop(next(iter(run.grid.contexts)))

    run.on_round = leave
    run.strategy.start(run.grid)
    assert [sum(record.clients.values()) for record in run.records] == [6, 5]


class Deaf(Answering):
    """A grid whose first node does not answer the first query."""

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        return [r for r in replies if r.metadata.src_node_id != next(iter(self.contexts)) or len(self.asked) > 2]


@pytest.mark.parametrize(("min_nodes", "found"), [(1, [2]), (2, [1, 2])])
def test_listed_node_without_answer_is_not_counted(min_nodes, found):
    grid, people = Deaf([NodeReport(0, False, (report(1),)), NodeReport(1, False, (report(2),))]), Roster(5)
    people.discover(grid, Order("r", "{}"), min_nodes, wait=5.0, deadline=0.05)
    assert [c.client for c in people.available()] == found


class Hung(Answering):
    """A grid whose first node never answers."""

    def pull_messages(self, message_ids):
        return [r for r in super().pull_messages(message_ids) if r.metadata.src_node_id != next(iter(self.contexts))]


class Expiring(Answering):
    """A grid whose first node never answers; when the query's time is up Flower says so."""

    def pull_messages(self, message_ids):
        first = next(iter(self.contexts))
        replies = [self.replies[m] for m in message_ids if m in self.replies]
        expired = [
            Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "expired"), reply_to=self.sent[m])
            for m in message_ids
            if m in self.sent and self.sent[m].metadata.dst_node_id == first and time.monotonic() > self.end
        ]
        return expired + [r for r in replies if r.metadata.src_node_id != first]

    def push_messages(self, messages):
        messages = list(messages)
        self.end = time.monotonic() + 0.8 * min((message.metadata.ttl for message in messages), default=0.0)
        ids = list(super().push_messages(messages))
        self.sent = dict(zip(ids, messages, strict=True))
        return ids


@pytest.mark.parametrize("kind", [Hung, Expiring])
def test_silent_node_costs_its_patience_once(monkeypatch, flower_log, kind):
    monkeypatch.setattr(engine_roster, "AGAIN", 0.1)
    grid, people = kind([NodeReport(0, False, (report(1),)), NodeReport(1, False, (report(2),))]), Roster(5)
    took = []
    for _ in range(3):
        start = time.monotonic()
        people.discover(grid, Order("r", "{}"), 1, wait=5.0, deadline=1.0)
        took.append(time.monotonic() - start)
    assert [c.client for c in people.available()] == [2]
    assert took[0] >= 0.8
    assert max(took[1:]) < 0.6
    assert sum("did not answer the query in 1 s" in line for line in flower_log) == 1
    assert len(grid.asked) == 4  # the silent one in every round: it may be better


@pytest.mark.parametrize("same", [True, False], ids=["with their keys", "without"])
def test_devices_that_come_back_while_their_dead_nodes_are_asked_take_part(same):
    """A server that was started again lists the nodes of before until their time is up, and answers for them then."""
    grid = Answering([NodeReport(0, False, (report(c % 2),)) for c in range(4)])
    one, two, *others = grid.get_node_ids()
    back, gone, listed = [one, two] if same else others, {one, two}, [one, two]
    grid.get_node_ids = lambda: list(listed)

    def answer(message: Message, context) -> Message:
        if context.node_id not in gone:
            return grid.answer(message, context)
        gone.remove(context.node_id)
        listed[:] = back
        return Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=message)

    grid.app = answer
    roster = Roster(2)
    roster.discover(grid, Order("", "{}"), min_nodes=2, wait=20.0, deadline=5.0)
    assert roster.homes == {0: back[0], 1: back[1]}


def test_too_few_answers_are_reported():
    grid, people = Deaf([NodeReport(0, False, (report(1),)), NodeReport(1, False, (report(2),))]), Roster(5)
    with pytest.raises(TimeoutError, match=r"1 nodes can take part after 0 s, round\.min-nodes asks for 2"):
        people.discover(grid, Order("r", "{}"), 2, wait=0.0, deadline=0.05)


def test_refused_node_does_not_count_and_gets_the_reason():
    refused = report(8, 0, refused="nothing fits")
    grid = Answering([NodeReport(0, False, (report(7, 3), refused)), NodeReport(1, False, (report(9, 1),))])
    left_out: list[tuple[str, str]] = []
    people = Roster(5, offered=(1, 2), leave_out=lambda name, reason: left_out.append((name, reason)))
    with pytest.raises(TimeoutError, match=r"1 nodes can take part after 0 s, .* asks for 2; client 7: depth 3"):
        people.discover(grid, Order("r", "{}"), 2, wait=0.0, deadline=5.0)
    reason = "depth 3 is not offered, this run has depth 1, 2"
    assert left_out == [("client 7", reason), ("client 8", "nothing fits")]
    notices = [(node, order.notice) for node, order in grid.asked if order.notice]
    assert notices == [(next(iter(grid.contexts)), f"client 7: {reason}")]


def again(people: Roster, grid: Answering) -> int:
    """Look for nodes again; return how many got a query that asks."""
    before = len(grid.asked)
    people.discover(grid, Order("r", "{}"), 1, wait=0.0, deadline=5.0)
    return sum(not order.notice for _, order in grid.asked[before:])


def test_first_node_keeps_client_that_two_nodes_claim(flower_log):
    people, grid = discovered([NodeReport(0, False, (report(7),)), NodeReport(1, False, (report(7),))])
    first = people.homes[7]
    (second,) = set(grid.answers) - {first}
    expected = f"client 7 of node {second} is left out: node {first} has this client and answers"
    assert sum(line.startswith(expected) for line in flower_log) == 1
    assert again(people, grid) == 0  # the decision stays
    assert [node for node, order in grid.asked if order.notice] == [second]
    del grid.contexts[first]  # Flower no longer lists it
    assert again(people, grid) == 0
    assert people.homes == {7: second}


def test_later_node_takes_no_client_of_responsive_node(flower_log):
    people, grid = discovered([NodeReport(0, False, (report(7),)), NodeReport(1, False, (report(8),))])
    thief = add(grid, NodeReport(2, False, (report(7), report(8), report(9))))
    assert again(people, grid) == 3
    first, second = list(grid.answers)[:2]
    assert people.homes == {7: first, 8: second, 9: thief}
    assert sum(f"node {thief} is left out" in line for line in flower_log) == 2


def test_restarted_device_replaces_dead_node():
    people, grid = discovered([NodeReport(0, False, (report(7),))])
    (died,) = grid.answers
    grid.answers[died] = None  # Flower's answer for it, while it is still listed
    back = add(grid, NodeReport(1, False, (report(7),)))
    assert again(people, grid) == 2
    assert people.homes == {7: back}


def test_refused_device_may_return_with_more_capacity():
    people, grid = discovered([NodeReport(0, False, (report(7, 0, refused="tier 1 needs 5 MB"),)), NodeReport(1, True)])
    assert 7 not in [c.client for c in people.available()]
    grid.contexts.pop(next(iter(grid.answers)))
    add(grid, NodeReport(2, False, (report(7, 2),)))
    again(people, grid)
    assert [c.part for c in people.available() if c.client == 7] == [2]


def add(grid: Answering, answer: NodeReport) -> int:
    """Add a node; return its id."""
    other = Answering([answer])
    (node,) = other.contexts
    number = max(grid.contexts, default=node) + 1
    context = other.contexts[node]
    context.node_id = number
    grid.contexts[number], grid.answers[number] = context, answer
    return number
