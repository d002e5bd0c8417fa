from collections.abc import Callable
from pathlib import Path

import pytest

from strategies.callbacks.report.clients import (
    accuracy_plot,
    client_plots,
    client_rows,
    exit_shares,
    sampled_plot,
    saving_sentence,
)
from strategies.callbacks.report.records import load_run
from tests.strategies.callbacks.samples import client_record, client_summary, final_record

pytest.importorskip("matplotlib")
MakeRun = Callable[..., Path]


def test_clients_evaluation_has_four_plots(make_run: MakeRun) -> None:
    plots = {p.title: p for p in client_plots(load_run(make_run(records=[client_record(1), client_record(2)])))}
    assert list(plots) == [
        "Accuracy on the clients",
        "All clients and those that trained",
        "Inference cost against accuracy",
        "Where samples leave",
    ]
    shown = {
        "Accuracy on the clients": ("exit 1", "exit 2", "mean"),
        "All clients and those that trained": ("all clients (2)", "sampled at least once (1)", "55.0", "90.0", "80.0"),
        "Inference cost against accuracy": (
            "one threshold for all", "full network", "common", "tuned", "1 point lost", "0.5", "0.9",
        ),
        "Where samples leave": ("tuned per client", "common threshold", "50.0 %", "100.0 %"),
    }  # fmt: skip
    for title, texts in shown.items():
        for text in texts:
            assert f">{text}</text>" in plots[title].svg, (title, text)
    assert "own test samples" in plots["Accuracy on the clients"].note


def test_run_without_clients_evaluation_has_no_client_plots(make_run: MakeRun) -> None:
    assert client_plots(load_run(make_run(records=[final_record(1)]))) == []


def test_plots_of_a_round_without_deep_or_sampled_clients() -> None:
    full = client_summary()
    shallow = full | {"exits": [0.5], "spread": [0.1], "sampled": {}}
    svg = accuracy_plot([(1, full), (2, shallow), (3, full)]).svg
    assert ">exit 2</text>" in svg
    assert "sampled at least once" not in sampled_plot(shallow).svg
    assert client_rows(shallow)[0][1:3] == ["50.0 ± 10.0 %", "-"]
    assert client_rows(shallow)[1][:3] == ["mean of exits", "60.0 ± 10.0 %", "-"]


def test_accuracy_plot_has_a_band_per_exit() -> None:
    svg = accuracy_plot([(1, client_summary()), (2, client_summary(1))]).svg
    assert svg.count('id="FillBetweenPolyCollection') == 2


def test_saving_sentence() -> None:
    assert saving_sentence(client_summary()) == (
        "Dynamic inference saves 37.5 % of the full network's MACs when every client leaves at the confidence that it "
        "chose on its validation samples, allowing 1 point to be lost there; accuracy goes from 70.0 % to 60.0 % "
        "(-10.0 points). With one confidence for all, at which no sample leaves early, it saves 0.0 %; accuracy goes "
        "from 70.0 % to 70.0 % (+0.0 points)."
    )
    one = client_summary()
    one["common"] = one["curve"][2] | {"full_accuracy": 0.7}
    assert "With one confidence for all, 0.6, it saves 75.0 %; accuracy goes from 70.0 % to 50.0 %" in saving_sentence(
        one
    )
    assert "2 of 2 clients are measured on the validation samples" in saving_sentence(client_summary(own_test=0))


def test_exit_shares() -> None:
    assert exit_shares([1, 0, 3]) == [0.25, 0.0, 0.75]


def test_no_saving_is_claimed_within_reach_of_the_majority_class() -> None:
    sentence = saving_sentence(client_summary() | {"majority": 0.6})
    assert sentence.startswith(
        "The clients' networks are not clearly better than answering each client's most frequent"
    )
    assert "60.0 %" in sentence
