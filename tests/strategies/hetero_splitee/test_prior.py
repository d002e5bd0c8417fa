"""Class frequencies of clients: their logarithms, the server's counts, and their place in a state dict."""

import math

import pytest
import torch

from strategies.hetero_splitee.prior import LABELS, LabelCounts, adjusted, counts_of, log_prior


def shares(prior: torch.Tensor | None) -> list[float]:
    """Return the frequencies of a prior."""
    assert prior is not None
    return [round(share, 6) for share in prior.exp().tolist()]


def test_every_class_counts_once_more_than_it_was_seen() -> None:
    prior = log_prior(torch.tensor([5, 0, 2]))
    assert torch.allclose(prior, torch.tensor([0.6, 0.1, 0.3]).log())
    assert prior.dtype == torch.float32
    assert shares(log_prior(torch.tensor([0, 0, 0, 0]))) == [0.25] * 4


def test_logits_are_adjusted_by_a_prior_if_there_is_one() -> None:
    logits = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    assert adjusted(logits, None) is logits
    prior = torch.tensor([0.75, 0.25]).log()
    odds = adjusted(logits, prior)[:, 0] - adjusted(logits, prior)[:, 1]
    assert torch.allclose(odds, torch.tensor([-1.0, 1.0]) + math.log(3))


def test_a_priors_first_round_is_what_has_come_and_later_the_last_finished_one() -> None:
    counts = LabelCounts(3)
    counts.open_round()
    assert shares(counts.count(7, torch.tensor([0, 0]))) == [0.6, 0.2, 0.2]
    assert shares(counts.count(7, torch.tensor([2, 0, 2, 2, 2]))) == [0.4, 0.1, 0.5]
    assert counts.prior(7) is None  # it has finished no round
    counts.close_round([7])
    assert shares(counts.prior(7)) == [0.4, 0.1, 0.5]
    counts.open_round()
    assert shares(counts.count(7, torch.tensor([1, 1]))) == [0.4, 0.1, 0.5]
    counts.close_round([7])
    assert shares(counts.prior(7)) == [0.2, 0.6, 0.2]  # its labels are others now


def test_epochs_do_not_sharpen_a_prior() -> None:
    once, often, labels = LabelCounts(10), LabelCounts(10), torch.tensor([0, 1] * 25)
    once.open_round()
    assert torch.equal(once.count(7, labels), log_prior(labels.bincount(minlength=10)))  # what its device has
    once.close_round([7])
    often.open_round(epochs=5)
    for _ in range(5):
        running = often.count(7, labels)
    assert torch.equal(running, log_prior(labels.bincount(minlength=10)))
    often.close_round([7])
    assert torch.equal(often.clients[7], once.clients[7])
    often.open_round(epochs=2)
    assert torch.equal(often.count(7, labels), often.prior(7))


def test_counts_of_an_unfinished_round_are_dropped() -> None:
    counts = LabelCounts(2)
    counts.open_round()
    for client in (1, 2):
        counts.count(client, torch.tensor([0, 0]))
    assert counts.nbytes() == 2 * 2 * 8
    counts.close_round([2, 9])  # 9 has sent nothing
    assert sorted(counts.clients) == [2]
    counts.open_round()
    counts.count(2, torch.tensor([1]))
    counts.open_round()  # the round before was killed
    assert shares(counts.prior(2)) == [0.75, 0.25]
    assert shares(counts.count(1, torch.tensor([1, 1]))) == [0.25, 0.75]


def test_without_classes_nothing_is_counted() -> None:
    counts, state = LabelCounts(), {"a": torch.ones(1)}
    counts.open_round()
    assert counts.count(1, torch.tensor([0])) is None
    counts.close_round([1])
    assert (counts.clients, counts.prior(1), counts.nbytes()) == ({}, None, 0)
    assert counts.beside(state) == state


def test_counts_come_back_from_a_state() -> None:
    counts = LabelCounts(3, {8: torch.tensor([1, 2, 3]), 2: torch.tensor([0, 0, 4])})
    state = counts.beside({"units.0.weight": torch.ones(1)})
    assert state[f"{LABELS}clients"].tolist() == [2, 8]
    found = counts_of(state, 3)
    assert {client: own.tolist() for client, own in found.clients.items()} == {2: [0, 0, 4], 8: [1, 2, 3]}
    assert counts_of({"units.0.weight": torch.ones(1)}, 3) == LabelCounts(3)


@pytest.mark.parametrize("wrong", [torch.ones(2, 4), torch.ones(1, 3), None], ids=["classes", "clients", "none"])
def test_malformed_counts_are_refused(wrong: torch.Tensor | None) -> None:
    state = {f"{LABELS}clients": torch.tensor([2, 8])} | ({} if wrong is None else {f"{LABELS}counts": wrong})
    with pytest.raises(ValueError, match="the label counts are not those of 2 clients and 3 classes"):
        counts_of(state, 3)
