from strategies.callbacks.accuracy import (
    above_majority,
    exit_accuracies,
    majority_text,
    mean_text,
    samples_text,
    tuned_text,
)
from tests.strategies.callbacks.samples import client_summary


def test_server_evaluation_takes_precedence() -> None:
    assert exit_accuracies({"exits": [0.5, 0.6]}, client_summary()) == [0.5, 0.6]
    assert exit_accuracies({}, client_summary()) == [0.5, 0.7]
    assert exit_accuracies({}, {}) == []


def test_accuracy_texts() -> None:
    summary = client_summary()
    assert mean_text(summary) == "60.0 ± 10.0 %"
    assert mean_text(summary["sampled"]) == "70.0 ± 0.0 %"
    assert mean_text({}) == "-"
    assert tuned_text(summary) == "60.0 ± 0.0 % at 62.5 % of full MACs"


def test_samples_text_names_the_split() -> None:
    assert samples_text(client_summary()) == "the clients' own test samples"
    assert samples_text(client_summary(own_test=0)) == "the clients' own validation samples"
    mixed = client_summary() | {"without_test": 1}
    assert samples_text(mixed) == (
        "the clients' own test samples (1 of 2 clients have none and use their validation samples)"
    )


def test_networks_within_reach_of_the_majority_class_are_named() -> None:
    measured = client_summary()  # 60 % against 30 %
    assert above_majority(measured)
    assert majority_text(measured) == "30.0 %"
    for score, above in ((0.58, True), (0.59, False), (0.7, False)):  # a point may be lost
        assert above_majority(measured | {"majority": score}) is above
    assert majority_text(measured | {"majority": 0.6}) == "60.0 %: the networks are not clearly better"
