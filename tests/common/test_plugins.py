import pytest

from common import plugins
from common.errors import UserError


@pytest.mark.parametrize("name", ["mine:net", "mine.nets:net", "_a.b_2.c:D"])
def test_reference_has_module_and_function(name):
    assert plugins.is_reference(name)


@pytest.mark.parametrize(
    "name", ["resnet18", "mine.nets", ":net", "mine:", "a b:c", "mine:net()", "a..b:c", "2a:b", "../a:b"]
)
def test_other_names_are_no_references(name):
    assert not plugins.is_reference(name)


def test_function_of_an_allowed_package_is_found(plugin):
    plugin("mine_found", "def net(spec):\n    return 7\n")
    assert plugins.find("network.name", "mine_found:net")(None) == 7


def test_other_modules_are_never_imported(plugin, tmp_path, monkeypatch):
    marker = tmp_path / "imported"
    plugin("mine_forbidden", f"open({str(marker)!r}, 'w')\ndef net(spec): pass\n")
    for allowed in ("", "mine", "mine_forbidden.sub", "other"):  # a prefix of letters is no package
        monkeypatch.setenv(plugins.VARIABLE, allowed)
        with pytest.raises(
            UserError, match=r"a client may not import 'mine_forbidden' .* EARLYBLOOM_PLUGINS=mine_forb"
        ):
            plugins.find("network.name", "mine_forbidden:net", "a client")
    assert not marker.exists()


def test_allowed_package_includes_its_modules(plugin, monkeypatch, tmp_path):
    folder = tmp_path / "mine_package" / "deep"
    folder.mkdir(parents=True)
    (folder / "nets.py").write_text("def net(spec): return 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(plugins.VARIABLE, "other, mine_package")
    assert plugins.find("network.name", "mine_package.deep.nets:net")(None) == 3
    monkeypatch.setenv(plugins.VARIABLE, "mine_package.deep")
    assert plugins.find("network.name", "mine_package.deep.nets:net")(None) == 3


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (None, "mine_absent:net", r"the server cannot import 'mine_absent' .*ModuleNotFoundError.*PYTHONPATH"),
        ("1 / 0", "mine_broken:net", r"the server cannot import 'mine_broken' .*ZeroDivisionError: division by zero"),
        ("def net(): pass", "mine_other:nat", r"network\.name is 'mine_other:nat', but mine_other has no 'nat'"),
        ("net = 3", "mine_number:net", r"'net' is int, must be a function"),
        (
            "from os import system as net",
            "mine_import:net",
            r"'net' comes from 'posix': name a function of 'mine_import'",
        ),
    ],
)
def test_what_cannot_be_had_is_refused(plugin, source, name, message):
    plugin(name.partition(":")[0], source)
    with pytest.raises(UserError, match=message):
        plugins.check({"network.name": name, "data.name": "digits"}, "the server")


def test_typed_names_allow_their_packages(monkeypatch):
    monkeypatch.setenv(plugins.VARIABLE, "one")
    plugins.allow(["resnet18", "two.nets:net", "one:net", "two.data:set"])
    assert plugins.allowed() == ["one", "two"]
