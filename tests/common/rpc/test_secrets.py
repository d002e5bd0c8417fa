"""Tokens and keys in files that only their owner can read."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509

from common.errors import UserError
from common.rpc import secrets
from common.rpc.certificates import Certificate, new_authority, self_signed, signed_by
from common.rpc.secrets import read_certificate, read_or_make_certificate, read_or_make_token, read_token


def test_token_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "token"
    token = read_or_make_token(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(token) >= 32
    assert read_or_make_token(file) == read_token(file) == token


def test_token_is_never_read_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process that starts before the first has written its token makes one too, and both use the same."""
    file, other = tmp_path / "token", list[str]()

    def link(source: str, target: Path) -> None:
        assert not file.exists()
        monkeypatch.undo()
        other.append(read_or_make_token(file))
        os.link(source, target)

    monkeypatch.setattr(secrets.os, "link", link)
    assert [read_or_make_token(file)] == other == [read_token(file)]
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


def test_concurrent_processes_share_one_token_and_certificate(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        tokens = set(pool.map(lambda _: read_or_make_token(tmp_path / "token"), range(32)))
        pairs = {(pair.key, pair.certificate) for pair in pool.map(lambda _: _certificate(tmp_path), range(16))}
    assert len(tokens) == len(pairs) == 1


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o640, 0o660])
def test_token_that_other_users_can_access_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "token"
    read_or_make_token(file)
    file.chmod(mode)
    for read in (read_token, read_or_make_token):
        with pytest.raises(UserError, match=f"chmod 600 {file}"):
            read(file)


def test_invalid_token_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(UserError, match="cannot be read"):
        read_token(file)
    file.touch(0o600)
    for text in ("", "\n", "two words", "a\nb", "tök"):
        file.write_text(text)
        with pytest.raises(UserError, match="holds no token"):
            read_token(file)
    with pytest.raises(UserError, match="cannot be created"):
        read_or_make_token(file / "below")


def test_certificate_survives_restarts_and_names_its_hosts(tmp_path: Path) -> None:
    made = read_or_make_certificate(tmp_path, ["10.0.0.7"])
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    again = read_or_make_certificate(tmp_path, ["10.0.0.7"])
    assert (again.key, again.certificate) == (made.key, made.certificate)
    assert read_certificate(tmp_path / "certificate.pem") == made.certificate
    names = x509.load_pem_x509_certificate(made.certificate).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert [str(ip) for ip in names.value.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]


def test_accessible_key_and_invalid_certificate_are_refused(tmp_path: Path) -> None:
    read_or_make_certificate(tmp_path, ["a"])
    (tmp_path / "key.pem").chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        read_or_make_certificate(tmp_path, ["a"])
    with pytest.raises(UserError, match="not a certificate"):
        read_certificate(tmp_path / "key.pem")
    with pytest.raises(UserError, match="cannot be read"):
        read_certificate(tmp_path / "absent.pem")


def test_key_without_its_certificate_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "PATIENCE", 0.05)
    read_or_make_certificate(tmp_path, ["a"])
    (tmp_path / "certificate.pem").unlink()
    with pytest.raises(UserError, match=r"key\.pem without its certificate\.pem: .*delete key\.pem"):
        read_or_make_certificate(tmp_path, ["a"])
    (tmp_path / "key.pem").unlink()
    read_or_make_certificate(tmp_path, ["a"])


@pytest.mark.parametrize("broken", ["key.pem", "certificate.pem"])
def test_files_that_are_not_a_pair_are_reported(tmp_path: Path, broken: str) -> None:
    read_or_make_certificate(tmp_path, ["a"])
    other = self_signed(["a"])
    (tmp_path / broken).write_bytes(other.key if broken == "key.pem" else other.certificate)
    with pytest.raises(UserError, match=f"{tmp_path / 'key.pem'} and certificate.pem: .*not a pair: .*delete"):
        read_or_make_certificate(tmp_path, ["a"])
    (tmp_path / broken).write_text("-----BEGIN CERTIFICATE-----")
    with pytest.raises(UserError, match="cannot be read"):
        read_or_make_certificate(tmp_path, ["a"])


def test_expired_certificate_or_another_host_is_reported(tmp_path: Path) -> None:
    read_or_make_certificate(tmp_path, ["10.0.0.7", "cam"])
    for known in ("10.0.0.7", "cam"):
        read_or_make_certificate(tmp_path, [known])
    with pytest.raises(UserError, match=r"is for 10\.0\.0\.7, cam and not for 10\.0\.0\.8: delete .* copy the new"):
        read_or_make_certificate(tmp_path, ["10.0.0.8"])
    old = self_signed(["cam"], days=0)
    (tmp_path / "certificate.pem").write_bytes(old.certificate)
    (tmp_path / "key.pem").write_bytes(old.key)
    day = x509.load_pem_x509_certificate(old.certificate).not_valid_after_utc.date()
    with pytest.raises(UserError, match=f"certificate.pem expired on {day}: delete key.pem"):
        read_or_make_certificate(tmp_path, ["cam"])


def test_pair_of_the_user_is_not_checked_for_hosts_or_expiry(tmp_path: Path) -> None:
    authority = new_authority()
    for folder, pair in {"signed": signed_by(authority, ["a"], days=0), "alone": authority}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "certificate.pem").write_bytes(pair.certificate)
        secrets.make_private(tmp_path / folder / "key.pem", pair.key)
        assert read_or_make_certificate(tmp_path / folder, ["elsewhere"]) == pair


def _certificate(folder: Path) -> Certificate:
    return read_or_make_certificate(folder, ["a"])
