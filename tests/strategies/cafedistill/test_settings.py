import pytest

from common.config import load_config
from common.errors import UserError
from common.settings import read_section
from strategies.cafedistill.settings import CAFEDistillSettings

SECTIONS = (CAFEDistillSettings,)


def test_defaults_are_the_published_values():
    settings = load_config({}, SECTIONS).of(CAFEDistillSettings)
    assert (settings.alpha, settings.kd_weight, settings.ce_weight, settings.temperature) == (0.6, 1.0, 1.0, 2.0)


def test_problems_list_every_mistake_by_its_key():
    wrong = {
        "cafedistill.alpha": 0.0,
        "cafedistill.kd-weight": -1.0,
        "cafedistill.ce-weight": float("nan"),
        "cafedistill.temperature": 0.0,
        "cafedistill.similarity": "gradients",
    }
    with pytest.raises(UserError) as caught:
        load_config(wrong, SECTIONS)
    assert [line.split()[1] for line in str(caught.value).splitlines()[1:]] == [
        "cafedistill.alpha", "cafedistill.kd-weight", "cafedistill.ce-weight", "cafedistill.temperature",
        "cafedistill.similarity",
    ]  # fmt: skip


@pytest.mark.parametrize("alpha", [0.0, -0.1, float("inf")])
def test_alpha_must_be_positive_and_finite(alpha):
    (problem,) = read_section(CAFEDistillSettings, alpha=alpha).problems
    assert problem.startswith(f"cafedistill.alpha is {alpha}, must be ")
    assert problem.endswith("above 0")
