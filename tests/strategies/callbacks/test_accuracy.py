from strategies.callbacks.accuracy import exit_accuracies


def test_the_servers_measure_comes_first() -> None:
    clients = {"exit-10": 0.9, "exit-2": 0.2, "exit-1": 0.1, "other": 7.0}
    assert exit_accuracies({"exits": [0.5, 0.6]}, clients) == [0.5, 0.6]
    assert exit_accuracies({}, clients) == [0.1, 0.2, 0.9]
    assert exit_accuracies({}, {}) == []
