"""How a simulation's workers share GPUs."""

import pytest

from common.errors import UserError
from server.commands import gpus
from server.commands.gpus import even_share, local_share, room


@pytest.mark.parametrize(
    ("workers", "cards", "share"),
    [(16, 1, 0.0625), (16, 4, 0.25), (3, 2, 0.5), (2, 4, 1.0), (3, 1, 0.3333), (6, 1, 0.1666), (4, 0, 0.0)],
)
def test_share_is_even_and_all_workers_fit(workers, cards, share):
    assert even_share(workers, cards) == share
    assert not cards or room(cards, share) >= workers


@pytest.mark.parametrize(("cards", "share", "workers"), [(2, 0.6, 2), (2, 0.25, 8), (4, 2, 2), (3, 2, 1), (1, 2, 0)])
def test_a_part_of_a_gpu_lies_on_one_card(cards, share, workers):
    assert room(cards, share) == workers


def test_workers_follow_the_share_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(gpus, "visible", lambda: 1)
    assert local_share(0.25, 16, "auto") == (0.25, 4)
    assert local_share(None, 16, "auto") == (0.0625, 16)
    assert local_share(0, 16, "auto") == local_share(None, 16, "cpu") == (0.0, 16)


@pytest.mark.parametrize(
    ("wanted", "device", "message"),
    [
        (0.5, "auto", "torch sees 0 GPUs here"),
        (None, "cuda", "clients.device is 'cuda', but torch sees no GPU here"),
        (0.0, "cuda", "--gpus 0 does not go with clients.device 'cuda'"),
        (0.5, "cpu", "--gpus 0.5 does not go with clients.device 'cpu'"),
    ],
)
def test_gpus_that_are_not_there_are_refused(monkeypatch, wanted, device, message):
    monkeypatch.setattr(gpus, "visible", lambda: 0)
    with pytest.raises(UserError, match=message):
        local_share(wanted, 2, device)


def test_torch_is_asked_only_where_there_is_a_driver(monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "COUNT", "print(3)")
    monkeypatch.setattr(gpus, "DRIVERS", (tmp_path / "none",))
    assert gpus.visible() == 0
    monkeypatch.setattr(gpus, "DRIVERS", (tmp_path,))
    assert gpus.visible() == 3
    monkeypatch.setattr(gpus, "COUNT", "raise RuntimeError('a broken driver')")
    assert gpus.visible() == 0
