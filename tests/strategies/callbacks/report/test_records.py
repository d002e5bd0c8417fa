import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import UserError
from strategies.callbacks.report.records import load_run, split_config
from tests.strategies.callbacks.samples import client_record, client_summary, final_record, record

MakeRun = Callable[..., Path]


def client(number: int, part: int, refused: str = "") -> dict[str, object]:
    return {"client": number, "part": part, "reason": "", "num_examples": 1, "refused": refused}


def test_run_is_read_from_its_folder_alone(make_run: MakeRun) -> None:
    run = load_run(make_run(reports=[client(0, 2), client(1, 1), client(2, 2), client(3, 0, "too small")]))
    assert (run.name, run.strategy, run.status) == ("some-run", "eefl", "completed")
    assert run.config["train.epochs"] == 7
    assert run.about == {"device": "some cpu", "commit": ""}
    assert run.numbers == [1, 2, 3]
    assert run.evaluated == [(1, [0.1, 0.2]), (2, [0.2, 0.4]), (3, [pytest.approx(0.3), pytest.approx(0.6)])]
    assert run.final["calibrated"]["accuracy"] == 0.58
    assert run.elapsed == {1: 2.0, 2: 4.0, 3: 6.0}
    assert run.seconds == 6.0
    assert (run.traffic("down"), run.traffic("up")) == ([3_000_000] * 3, [1_000_000] * 3)
    assert run.declared == {1: 1, 2: 2}
    assert run.refused == {3: "too small"}


def test_runs_are_read_and_compared_without_torch(make_run: MakeRun) -> None:
    script = (
        "import sys; from pathlib import Path; from server.study import results; "
        "from strategies.callbacks.report.comparison import comparison_rows, text_table; "
        "run = results.load_run(Path(sys.argv[1])); "
        "print(text_table(comparison_rows([results.Group('some', {1: run})]))); print('torch' in sys.modules)"
    )
    folder = make_run(reports=[client(0, 2)])
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    assert "mean of exits" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"  # its import takes longer than all else that a launcher does


def test_status_says_how_the_run_ended(make_run: MakeRun) -> None:
    assert load_run(make_run("a", failure="QuorumError: 1 of 6")).status == "failed: QuorumError: 1 of 6"
    assert load_run(make_run("b", failure=None)).status == "not ended"


def test_repeated_round_counts_once_with_its_last_values(make_run: MakeRun) -> None:
    run = load_run(make_run(records=[record(1), record(2), record(2, traffic={"down": 5, "up": 1})]))
    assert run.traffic("down") == [3_000_000, 5]


def test_clients_accuracy_counts_only_without_server_evaluation(make_run: MakeRun) -> None:
    alone = load_run(make_run("alone", records=[record(1, accuracy={}), client_record(2), client_record(3)]))
    assert (alone.on_server, alone.evaluated) == (False, [(2, [0.55, 0.75]), (3, pytest.approx([0.6, 0.8]))])
    assert alone.means == [(2, pytest.approx(0.65)), (3, pytest.approx(0.7))]
    assert alone.clients == client_summary(2)
    both = load_run(make_run("both", records=[client_record(1), final_record(2)]))
    assert (both.on_server, both.evaluated, both.means) == (True, [(2, [0.2, 0.4])], [(2, 0.3)])
    assert both.on_clients == [(1, client_summary())]
    neither = load_run(make_run("neither", records=[record(1, accuracy={})]))
    assert (neither.evaluated, neither.means, neither.clients) == ([], [], {})


def test_clients_evaluation_in_another_form_is_ignored(make_run: MakeRun) -> None:
    assert load_run(make_run(records=[client_record(1, client_accuracy={"exit-1": 0.5})])).clients == {}


def test_changed_values_are_split_from_defaults(make_run: MakeRun) -> None:
    changed, rest = split_config(load_run(make_run()))
    assert changed == {"run.name": "some-run", "run.strategy": "eefl", "run.rounds": 3, "train.epochs": 7}
    assert rest == {"train.lr": 0.05}


def test_defaults_of_other_methods_are_left_out(make_run: MakeRun) -> None:
    _, rest = split_config(load_run(make_run(strategy="darkdistill")))
    assert rest == {"run.strategy": "darkdistill", "train.lr": 0.05, "darkdistill.label-weight": 1.0}


def test_run_with_a_damaged_checkpoint_is_read(make_run: MakeRun) -> None:
    folder = make_run(reports=[client(0, 2)])
    (folder / "checkpoints" / "round-000003.safetensors").write_bytes(b"half")
    run = load_run(folder)
    assert (run.numbers, run.declared) == ([1, 2, 3], {})


def test_run_is_read_in_utf_8_whatever_the_locale_has(make_run: MakeRun) -> None:
    script = (
        "import sys, warnings; from pathlib import Path; from strategies.callbacks.report.records import load_run; "
        "warnings.simplefilter('error', EncodingWarning); print(ascii(load_run(Path(sys.argv[1])).name))"
    )
    arguments = [sys.executable, "-X", "warn_default_encoding", "-c", script, make_run("zoë")]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stdout == "'zo\\xeb'\n"


def test_folder_without_a_run_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds config\.toml"):
        load_run(tmp_path)
