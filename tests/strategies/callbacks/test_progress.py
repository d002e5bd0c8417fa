from typing import Any

from strategies.callbacks.progress import Progress, closing_table, round_line
from tests.strategies.callbacks.samples import client_record, client_summary, final_record, record

CLOSING = ["rounds", "time", "traffic", "left"]


def test_round_line() -> None:
    line = round_line(record(2, failures={4: "gone", 5: "gone"}), remaining=185.0)
    assert line == "round 2/3, accuracy 30.0 % (exits 20.0 40.0), 2.0 s, ETA 3 min 05 s, 2 left out"
    line = round_line(record(2, failures={4: "gone", 5: "too large"}, rejected=[5]), remaining=185.0)
    assert line.endswith("2 left out (1 rejected)")


def test_round_line_of_the_last_round_with_clients_evaluation() -> None:
    line = round_line(client_record(3), remaining=0.0)
    assert line == "round 3/3, on clients 70.0 ± 20.0 % (exits 60.0 80.0), 2.0 s"


def test_round_line_with_server_and_clients_evaluation() -> None:
    line = round_line(record(3, client_accuracy=client_summary()), remaining=0.0)
    assert line == "round 3/3, accuracy 45.0 % (exits 30.0 60.0), on clients 60.0 ± 10.0 % (exits 50.0 70.0), 2.0 s"


def test_round_line_without_any_evaluation() -> None:
    assert round_line(record(1, accuracy={}), remaining=4.0) == "round 1/3, 2.0 s, ETA 4.0 s"


def test_closing_table_has_last_evaluation_and_sums_of_rounds() -> None:
    records = [record(1, failures={7: "late"}), record(2), final_record(3)]
    assert [line.split() for line in closing_table(records)] == [
        ["exit", "1", "30.0", "%"],
        ["exit", "2", "60.0", "%"],
        ["mean", "of", "exits", "45.0", "%"],
        ["calibrated", "58.0", "%", "at", "75.0", "%", "of", "full", "MACs"],
        ["rounds", "3"],
        ["time", "6.0", "s"],
        ["traffic", "9.0", "MB", "down,", "3.0", "MB", "up"],
        ["left", "out", "1"],
    ]
    records = [record(1, failures={7: "late", 8: "too large"}, rejected=[8]), record(2)]
    assert closing_table(records)[-1].split() == ["left", "out", "2", "(1", "rejected)"]
    assert closing_table([]) == []


def test_closing_table_shows_the_last_clients_evaluation() -> None:
    lines = closing_table([client_record(1), client_record(2), record(3, accuracy={})])
    assert lines[:7] == [
        "  on clients               2, mean ± spread over them, the clients' own test samples",
        "    exit 1                 55.0 ± 15.0 %",
        "    exit 2                 75.0 ± 15.0 %",
        "    mean of exits          65.0 ± 15.0 %",
        "    sampled at least once  80.0 ± 0.0 % (1 of 2)",
        "    majority class         30.0 %",
        "    tuned                  65.0 ± 5.0 % at 62.5 % of full MACs",
    ]
    both = [line.split()[0] for line in closing_table([record(1), client_record(2)])]
    assert both == ["exit", "exit", "mean", "on", "exit", "exit", "mean", "sampled", "majority", "tuned", *CLOSING]


def test_eta_uses_the_mean_round_since_this_start(strategy: Any, flower_log: list[str]) -> None:
    progress = Progress()
    progress.on_round(strategy, record(1, 9, seconds={"round": 100.0}))
    progress.on_start(strategy)
    progress.on_round(strategy, record(5, 9, seconds={"round": 1.0}))
    progress.on_round(strategy, record(6, 9, seconds={"round": 2.0}))
    assert flower_log[-1].endswith("2.0 s, ETA 4.5 s")


def test_failure_is_logged_after_the_table(strategy: Any, flower_log: list[str]) -> None:
    progress = Progress()
    progress.on_round(strategy, record(1))
    strategy.round = 1
    progress.on_end(strategy, "QuorumError: 0 of 6")
    assert flower_log[-1] == "the run failed after round 1: QuorumError: 0 of 6"
    assert any(line.split() == ["rounds", "1"] for line in flower_log)
