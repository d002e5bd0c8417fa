"""`python -m client probe`: networks that take the images, and what a run would read of a device's folder."""

import json

from client.__main__ import main
from client.commands import probe


def test_network_that_does_not_take_such_images_has_the_reason(monkeypatch, capsys):
    monkeypatch.setattr(probe, "backbones", lambda: ("deit_tiny", "lenet"))
    arguments = ["probe", "--capacity", "high", "--image-size", "28"]
    assert main([*arguments, "--json"]) == 0
    (refused, fit) = json.loads(capsys.readouterr().out)["networks"]
    assert (refused["tiers"], refused["cuts"], fit["tiers"]) == (0, 0, 3)
    assert refused["depth"]["reason"] == refused["cut"]["reason"]
    assert "images of 28x28 do not fit deit_tiny" in refused["depth"]["reason"]
    assert main(arguments) == 0
    assert "3 of 3" in capsys.readouterr().out
    assert main([*arguments, "--network", "deit_tiny"]) == 2
    assert "its patches are 16x16, set --image-size to a multiple" in capsys.readouterr().err


def test_folder_is_shown_with_its_classes(cases_root, capsys):
    assert main(["probe", "--data", str(cases_root / "plain")]) == 0
    shown = capsys.readouterr().out
    assert f"data folder in {cases_root / 'plain'}: 40 images; 2 classes; RGB images of 16x16" in shown
    assert main(["probe", "--data", str(cases_root / "plain"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["classes"], facts["counts"]) == (["box", "cross"], {"images": [20, 20]})


def test_folder_that_a_run_refuses_is_refused(cases_root, tmp_path, capsys):
    assert main(["probe", "--data", str(tmp_path)]) == 2
    assert "holds no images" in capsys.readouterr().err
    assert main(["probe", "--data", str(cases_root / "corrupt")]) == 2
    assert "cannot be read" in capsys.readouterr().err
