"""What a study runs: its file, its cells, and what is refused."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from common.errors import UserError
from server.study.plan import Study, grid_options, named_variants, read_study

FILE = """
preset = "demo"
methods = ["eefl", "parallel"]
seeds = [1, 2]
[settings]
run.rounds = 3
[grid]
data.alpha = [0.1, 1000.0]
[variants.parallel]
run.strategy = "darkdistill"
darkdistill.variant = "parallel"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "small.toml"
    path.write_text(text)
    return path


def test_file_is_read_with_its_preset(tmp_path: Path) -> None:
    found = read_study(written(tmp_path, FILE))
    assert (found["name"], found["methods"], found["seeds"]) == ("small", ["eefl", "parallel"], [1, 2])
    assert found["settings"]["run.rounds"] == 3
    assert found["settings"]["train.epochs"] == 5  # the preset's
    assert found["grid"] == {"data.alpha": [0.1, 1000.0]}
    assert found["variants"] == {"parallel": {"run.strategy": "darkdistill", "darkdistill.variant": "parallel"}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("method = ['eefl']", "'method' is no entry of a study: choose from name, preset"),
        ("methods = 'eefl'", "methods is 'eefl', must be a list"),
        ("seeds = [1.5]", "seeds has 1.5, must be whole numbers"),
        ("seeds = [true]", "seeds has True"),
        ("[grid]\ndata.alpha = 0.1", "grid.data.alpha is 0.1, must be a list of values"),
        ("[grid]\nalpha = [0.1]", "grid.alpha is"),
        ("variants.a = 1", "variants.a must be a table"),
        ("[settings]\nrounds = 3", "'rounds' stands outside a section"),
        ("methods = [", "is not valid TOML"),
    ],
)
def test_mistake_in_a_file_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError) as raised:
        read_study(written(tmp_path, text))
    assert words in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert read_study(written(tmp_path, "\ufeffseeds = [3]"))["seeds"] == [3]


def test_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_study(tmp_path / "absent.toml")


def test_cells_are_variants_at_points_with_seeds(tmp_path: Path) -> None:
    variants = named_variants(["eefl", "median"], {})
    cells = Study("s", variants, [3, 4], {"run.rounds": 2}, {"data.alpha": [0.1, 1.0]}).cells(tmp_path)
    assert [(cell.variant, dict(cell.point), cell.seed) for cell in cells] == [
        (m, {"data.alpha": alpha}, seed) for seed in (3, 4) for alpha in (0.1, 1.0) for m in ("eefl", "median")
    ]  # fmt: skip
    assert cells[1].values == {
        "run.rounds": 2, "data.alpha": 0.1, "run.strategy": "median", "run.name": "median-alpha-0.1-s3",
        "run.root": str(tmp_path), "run.seed": 3,
    }  # fmt: skip
    assert cells[1].folder == tmp_path / "median-alpha-0.1-s3"
    assert cells[1].label == "median, data.alpha 0.1"


def test_variant_can_use_the_run_of_another(tmp_path: Path) -> None:
    taught = {"run.strategy": "distree", "distree.teacher": "cell:eefl"}
    first, second = Study("s", named_variants(["eefl", "b"], {"b": taught})).cells(tmp_path)
    assert second.values["distree.teacher"] == str(first.folder)
    assert second.needs == ("eefl",)
    with pytest.raises(UserError, match="b needs the cell eefl, which does not run before it"):
        Study("s", named_variants(["b", "eefl"], {"b": taught})).cells(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../mine"}, r"the study's name is '\.\./mine', must be letters"),
        ({"variants": {}}, "a study needs methods"),
        ({"seeds": [1, 1]}, r"seeds are \[1, 1\]"),
        ({"seeds": []}, "at least one"),
        ({"settings": {"run.seed": 3}}, "a study sets run.seed itself: remove it from the settings"),
        ({"grid": {"run.name": ["a"]}}, "remove it from the grid"),
        ({"grid": {"data.alpha": []}}, r"grid's data.alpha is \[\]"),
        ({"grid": {"data.alpha": [1, "1"]}}, "each once"),
        ({"settings": {"run.strategy": "median"}}, "remove run.strategy from the settings"),
        ({"grid": {"run.strategy": ["eefl"]}}, "from --methods or its file: remove run.strategy from the grid"),
        (
            {"grid": {"data.alpha": [1]}, "variants": named_variants(["eefl"], {"eefl": {"data.alpha": 2}})},
            "data.alpha is in the grid and in the variant 'eefl'",
        ),
    ],
)
def test_study_that_cannot_run_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Study(**{"name": "s", "variants": named_variants(["eefl"], {}), **changes})


def test_names_that_would_share_a_folder_are_refused(tmp_path: Path) -> None:
    variants = {name: {"run.strategy": "eefl"} for name in ("a b", "a_b")}
    with pytest.raises(UserError, match="a_b and a b would both run as a_b-s1: rename one"):
        Study("s", variants).cells(tmp_path)


def test_methods_are_named_once_and_leave_no_variant_out() -> None:
    with pytest.raises(UserError, match="name each method once"):
        named_variants(["eefl", "eefl"], {})
    with pytest.raises(UserError, match="leave out its variant 'b'"):
        named_variants(["eefl"], {"b": {}})


@pytest.mark.parametrize(
    ("key", "place"), [("data.alpha", "the grid"), ("train.lr", "the variant 'slow'"), ("train.epochs", "")]
)
def test_setting_that_would_be_replaced_is_refused(key: str, place: str) -> None:
    variants = named_variants(["eefl", "slow"], {"slow": {"run.strategy": "eefl", "train.lr": 0.01}})
    study = Study("s", variants, [1], {"train.lr": 0.1, "train.epochs": 2}, {"data.alpha": [1]})
    with pytest.raises(UserError, match=f"-c {key} is replaced by the value in {place}") if place else nullcontext():
        study.refuse_overridden([key])


def test_preset_of_a_method_serves_a_study_of_others(tmp_path: Path) -> None:
    found = read_study(written(tmp_path, 'preset = "cafedistill-published"\nmethods = ["fedper"]'))
    assert "run.strategy" not in found["settings"]
    assert found["settings"]["cafedistill.alpha"] == 0.6


def test_grid_options() -> None:
    assert grid_options(["data.alpha=0.1, 1", "train.lr = 1"]) == {"data.alpha": ["0.1", "1"], "train.lr": ["1"]}
    with pytest.raises(UserError, match=r"--grid data\.alpha: write KEY=VALUE,VALUE"):
        grid_options(["data.alpha"])
    with pytest.raises(UserError, match=r"--grid data\.alpha is given twice"):
        grid_options(["data.alpha=0.1", "data.alpha=1"])
