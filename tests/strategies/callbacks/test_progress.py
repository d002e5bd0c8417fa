from typing import Any

from strategies.callbacks.progress import Progress, closing_table, round_line
from tests.strategies.callbacks.samples import final_record, record


def test_round_line() -> None:
    line = round_line(record(2, failures={4: "gone", 5: "gone"}), remaining=185.0)
    assert line == "round 2/3, accuracy 30.0 % (exits 20.0 40.0), 2.0 s, ETA 3 min 05 s, 2 left out"


def test_round_line_of_the_last_round_without_a_server_evaluation() -> None:
    line = round_line(record(3, accuracy={}, client_accuracy={"exit-1": 0.5, "exit-2": 0.7}), remaining=0.0)
    assert line == "round 3/3, validation accuracy 60.0 % (exits 50.0 70.0), 2.0 s"


def test_round_line_without_any_evaluation() -> None:
    assert round_line(record(1, accuracy={}), remaining=4.0) == "round 1/3, 2.0 s, ETA 4.0 s"


def test_closing_table_takes_the_last_evaluation_and_adds_up_the_rounds() -> None:
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
    assert closing_table([]) == []


def test_eta_is_the_mean_of_this_starts_rounds(strategy: Any, flower_log: list[str]) -> None:
    progress = Progress()
    progress.on_round(strategy, record(1, 9, seconds={"round": 100.0}))
    progress.on_start(strategy)
    progress.on_round(strategy, record(5, 9, seconds={"round": 1.0}))
    progress.on_round(strategy, record(6, 9, seconds={"round": 2.0}))
    assert flower_log[-1].endswith("2.0 s, ETA 4.5 s")


def test_a_failed_run_says_so_after_the_table(strategy: Any, flower_log: list[str]) -> None:
    progress = Progress()
    progress.on_round(strategy, record(1))
    strategy.round = 1
    progress.on_end(strategy, "QuorumError: 0 of 6")
    assert flower_log[-1] == "the run failed after round 1: QuorumError: 0 of 6"
    assert any(line.split() == ["rounds", "1"] for line in flower_log)
