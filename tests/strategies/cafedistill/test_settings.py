import pytest

from common.config import load_config
from common.errors import UserError
from common.settings import read_section
from server.commands.preset import read_preset
from strategies.cafedistill.settings import CAFEDistillSettings

SECTIONS = (CAFEDistillSettings,)


def weights(flat) -> tuple[object, ...]:
    settings = load_config(flat, SECTIONS).of(CAFEDistillSettings)
    return settings.alpha, settings.kd_weight, settings.ce_weight, settings.ce_division, settings.admitted_by


def test_defaults_are_those_that_validation_chose():
    assert weights({}) == (0.15, 0.1, 1.0, "all", 0.1)
    assert load_config({}, SECTIONS).of(CAFEDistillSettings).temperature == 2.0


def test_published_weights_are_a_preset():
    preset = read_preset("cafedistill-published")
    assert preset.pop("run.strategy") == "cafedistill"
    assert weights(preset) == (0.6, 1.0, 1.0, "all", 0.5)


def test_problems_list_every_mistake_by_its_key():
    wrong = {
        "cafedistill.alpha": 0.0,
        "cafedistill.kd-weight": -1.0,
        "cafedistill.ce-weight": float("nan"),
        "cafedistill.ce-division": "exits",
        "cafedistill.temperature": 0.0,
        "cafedistill.admitted-by": 0.0,
        "cafedistill.similarity": "gradients",
    }
    with pytest.raises(UserError) as caught:
        load_config(wrong, SECTIONS)
    assert [line.split()[1] for line in str(caught.value).splitlines()[1:]] == [
        "cafedistill.alpha", "cafedistill.kd-weight", "cafedistill.ce-weight", "cafedistill.ce-division",
        "cafedistill.temperature", "cafedistill.admitted-by", "cafedistill.similarity",
    ]  # fmt: skip


@pytest.mark.parametrize("alpha", [0.0, -0.1, float("inf")])
def test_alpha_must_be_positive_and_finite(alpha):
    (problem,) = read_section(CAFEDistillSettings, alpha=alpha).problems
    assert problem.startswith(f"cafedistill.alpha is {alpha}, must be ")
    assert problem.endswith("above 0")
