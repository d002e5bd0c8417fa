"""Profiles of devices: the known ones, a user's own, and which client has which."""

import json
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from common.errors import UserError
from common.profiles import TABLE, Profile, device_of, parse_devices, read_profiles

KNOWN = ("pi4", "pi5", "jetson_nano", "jetson_orin_nano", "phone_mid", "phone_high", "laptop", "mcu")


def test_known_profiles_have_a_description_and_a_source():
    tables = tomllib.loads(TABLE.read_text())
    assert tuple(tables) == KNOWN
    for name, table in tables.items():
        assert table["device"], name
        assert table["source"].startswith(("derived: ", "measured")), name


def test_known_profile_is_read_in_base_units():
    assert read_profiles("pi4")["pi4"] == Profile(12e9, 45e6, 0.021, 2e9, 7.2, 2.7)
    assert list(read_profiles("mcu:1,pi5:1")) == ["mcu", "pi5"]
    assert read_profiles("") == {}


def test_capacity_is_what_a_device_declares():
    capacity = read_profiles("pi4")["pi4"].capacity
    assert (capacity.memory, capacity.compute, capacity.bandwidth) == (2e9, 12e9, 45e6)
    assert Profile(1e9).capacity.bandwidth is None


def test_profile_survives_json():
    for profile in (Profile(1e9), Profile(2e9, 3e6, 0.5, 4e6, 5.0, 6.0)):
        assert Profile(**json.loads(json.dumps(profile.known()))) == profile


def test_consecutive_ids_share_a_profile():
    devices = parse_devices("pi4:0.4, laptop:0.3,mcu:0.3")
    names = [device_of(devices, client, 10) for client in range(10)]
    assert names == ["pi4"] * 4 + ["laptop"] * 3 + ["mcu"] * 3


def test_shares_need_not_sum_to_one_nor_be_given():
    assert parse_devices("a:1,b:3") == {"a": 0.25, "b": 0.75}
    assert parse_devices("a,b") == {"a": 0.5, "b": 0.5}
    thirds = parse_devices("a,b,c:0")
    assert Counter(device_of(thirds, client, 7) for client in range(7)) == {"a": 4, "b": 3}


def test_own_file_adds_profiles_and_wins(tmp_path: Path):
    file = tmp_path / "own.toml"
    file.write_text('[camera]\ncompute = "2GFLOPS"\nbandwidth = "10Mbps"\n[pi4]\ncompute = "1G"\nbandwidth = "1M"\n')
    found = read_profiles("camera:1,pi4:1,pi5:1", str(file))
    assert found["camera"] == Profile(2e9, 10e6)
    assert found["pi4"].compute == 1e9
    assert found["pi5"].compute == 30e9


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ("pi4:much", "has 'pi4:much': write NAME:SHARE, the share a number"),
        ("pi4:nan", "write NAME:SHARE"),
        ("pi4:-1,pi5:2", "write NAME:SHARE"),
        ("pi4:0.5,", "has '': write NAME:SHARE"),
        (":0.5", "write NAME:SHARE"),
        ("pi4:0.5,pi4:0.5", "names pi4 twice"),
        ("pi4:0,pi5:0", "one share must be above 0"),
        ("pi44:1", "names 'pi44', which is no known profile: choose of jetson_nano, "),
        ("pi44:1", "do you mean pi4?"),
    ],
)
def test_wrong_devices_are_refused(devices: str, words: str):
    with pytest.raises(UserError) as caught:
        read_profiles(devices)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[own]\nbandwidth = "1Mbps"\n', "profile 'own' has no compute, without which nothing can be timed"),
        ('[own]\ncompute = "1GFLOPS"\n', "profile 'own' has no bandwidth"),
        ('[own]\ncompute = "fast"\nbandwidth = "1Mbps"\n', "profile 'own': compute='fast' cannot be read"),
        ('[own]\ncompute = "1G"\nbandwidth = "1M"\nlatency = "long"\n', "latency is 'long', must be a number"),
        ('[own]\ncompute = "1G"\nbandwidth = "1M"\nbusy-watts = -1\n', "busy-watts is -1, must be a number"),
        ('[own]\ncompute = "1G"\nbandwidth = "1M"\nflops = 1\n', "has the unknown field flops: a profile has compute"),
        (
            '[own]\ncompute = "1G"\nbandwidth = "1M"\nlatency = 1e19\n',
            "latency is 1e+19, must be a number from 0 to 1e+18",
        ),
        ("own = 5\n", "profile 'own' is 5: write a table [own]"),
        ("[own\n", "cannot be read"),
    ],
)
def test_wrong_profiles_are_refused(tmp_path: Path, text: str, words: str):
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_profiles("own", str(file))
    assert words in str(caught.value)


def test_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"clients\.profiles .*none\.toml' cannot be read"):
        read_profiles("pi4", str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    "wrong",
    [{"compute": 0.0}, {"compute": float("nan")}, {"compute": 1e9, "bandwidth": 0.0}, {"compute": 1e9, "latency": -1.0},
     {"compute": 1e9, "latency": float("inf")}, {"compute": "fast"}, {"compute": 1e9, "busy_watts": -3.0},
     {"compute": 1e9, "bandwidth": float("nan")}, {"compute": True}, {"compute": 1e-300},
     {"compute": 1e9, "latency": 1e300}],
)  # fmt: skip
def test_impossible_numbers_are_no_profile(wrong):
    with pytest.raises(ValueError, match=r"profile|compute"):
        Profile(**wrong)


def test_readme_has_every_profile_as_the_file_has_it():
    readme = TABLE.with_name("README.md").read_text()
    for name, table in tomllib.loads(TABLE.read_text()).items():
        watts = [f"{table[field]:g} W" if field in table else "-" for field in ("busy-watts", "idle-watts")]
        link = f"{table['bandwidth']}, {1000 * table['latency']:g} ms"
        source = " ".join(table["source"].split())
        cells = (f"`{name}`", table["compute"], table["memory"], link, ", ".join(watts), f"{table['device']}; {source}")
        assert f"| {' | '.join(cells)} |" in readme, name
