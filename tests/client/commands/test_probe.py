"""`python -m client probe --data`: what a run would read of a device's folder."""

import json

from client.__main__ import main


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
