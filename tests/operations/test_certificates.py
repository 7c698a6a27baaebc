"""The first-try authority: what its certificates say, judged by openssl itself, and what it refuses."""

from __future__ import annotations

import contextlib
import stat
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from compoff.errors import LocalProtocolError
from compoff.operations.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def openssl(*words: str | Path) -> str:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, timeout=30, check=False)
    return done.stdout + done.stderr


def test_openssl_agrees_with_what_they_are_for(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.issue_server("edge", ["edge.example", "192.0.2.7", "2001:db8::7"])
    authority.issue_device("camera-1")
    for name, right, wrong in (("edge", "sslserver", "sslclient"), ("camera-1", "sslclient", "sslserver")):
        verify = ("verify", "-x509_strict", "-CAfile", authority.path, "-purpose")
        assert ": OK" in openssl(*verify, right, tmp_path / f"{name}.pem")
        assert ": OK" not in openssl(*verify, wrong, tmp_path / f"{name}.pem")
    text = openssl("x509", "-in", tmp_path / "edge.pem", "-noout", "-text")
    assert "DNS:edge.example, IP Address:192.0.2.7, IP Address:2001:DB8:0:0:0:0:0:7" in text


def test_only_the_owner_reads_a_key(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    key = authority.issue_device("camera-1")[1]
    for path in (key, tmp_path / "ca.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_authority_is_the_same_the_next_time(tmp_path: Path) -> None:
    Authority(tmp_path).issue_device("camera-1")
    Authority(tmp_path).issue_device("camera-2")
    for name in ("camera-1", "camera-2"):
        assert ": OK" in openssl("verify", "-CAfile", tmp_path / "ca.pem", tmp_path / f"{name}.pem")


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    before = authority.issue_device("camera-1")[0].read_bytes()
    with pytest.raises(LocalProtocolError, match="is there already; choose another name, or replace it with --renew"):
        authority.issue_device("camera-1")
    assert (tmp_path / "camera-1.pem").read_bytes() == before
    assert authority.issue_device("camera-1", renew=True)[0].read_bytes() != before


def test_a_servers_certificate_and_a_devices_do_not_replace_each_other(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.issue_server("edge", ["edge.local"])
    authority.issue_device("camera-1")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(LocalProtocolError, match=r"edge\.pem' is a server's certificate, which stays; choose another"):
        authority.issue_device("edge", renew=True)
    with pytest.raises(LocalProtocolError, match=r"camera-1\.pem' is a device's certificate, which stays"):
        authority.issue_server("camera-1", ["edge.local"], renew=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    authority.issue_server("edge", ["edge.local"], renew=True)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Files end after 300 bytes: a key fits, a certificate does not."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    with full_disk():
        Authority(tmp_path)
    assert not list(tmp_path.iterdir())
    authority = Authority(tmp_path)
    authority.issue_device("camera-1")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with full_disk():
        authority.revoke("camera-1")
    with full_disk():
        authority.issue_device("camera-1", renew=True)
    with full_disk():
        authority.issue_device("camera-2")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_revoked_certificates_are_on_the_list(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    for name in ("camera-1", "camera-2", "camera-3"):
        authority.issue_device(name)
    authority.revoke("camera-1")
    authority.revoked_path.chmod(0o640)
    Authority(tmp_path).revoke("camera-3")
    assert stat.S_IMODE(authority.revoked_path.stat().st_mode) == 0o640, "who may read the list stays so"
    check = ("verify", "-crl_check", "-CAfile", authority.path, "-CRLfile", authority.revoked_path)
    revoked = {name: "certificate revoked" in openssl(*check, tmp_path / f"{name}.pem") for name in
               ("camera-1", "camera-2", "camera-3")}  # fmt: skip
    assert revoked == {"camera-1": True, "camera-2": False, "camera-3": True}


def test_a_certificate_keeps_the_date_at_which_it_was_taken_back(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    for name in ("camera-1", "camera-2"):
        authority.issue_device(name)

    def dates() -> list[str]:
        text = openssl("crl", "-in", authority.revoked_path, "-noout", "-text")
        return [line for line in text.splitlines() if "Revocation Date" in line]

    authority.revoke("camera-1")
    first = dates()
    time.sleep(1.1)
    for name in ("camera-1", "camera-2"):
        authority.revoke(name)
    assert (dates()[0], len(dates()), dates()[1] != first[0]) == (first[0], 2, True)


def test_a_certificate_that_is_not_there_is_told_beside_those_that_are(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with pytest.raises(LocalProtocolError, match=r"has no certificate 'nobody'; those of it are: none"):
        authority.revoke("nobody")
    for name in ("camera-2", "camera-1"):
        authority.issue_device(name)
    authority.issue_device("camera-1", renew=True)
    with pytest.raises(LocalProtocolError, match=r"no certificate 'nobody'; those of it are: 'camera-1', 'camera-2'$"):
        authority.revoke("nobody")
    (tmp_path / "ca.key").unlink()
    with pytest.raises(LocalProtocolError, match=r"ca\.key' holds no private key .*\(No such file or directory\)"):
        Authority(tmp_path)


@pytest.mark.parametrize("name", ["", "ca", "revoked", "../x", "a/b", "x" * 64, "-x", "naïve"])
def test_names_that_cannot_be_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(LocalProtocolError, match="cannot name a certificate"):
        Authority(tmp_path).issue_device(name)


@pytest.mark.parametrize("hosts", [[], ["a b"], ["edge:7878"], [""]])
def test_hosts_that_cannot_be_reached(tmp_path: Path, hosts: list[str]) -> None:
    with pytest.raises(LocalProtocolError):
        Authority(tmp_path).issue_server("edge", hosts)


def test_another_folder_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(LocalProtocolError, match="has no certificate 'camera-1'"):
        Authority(tmp_path).revoke("camera-1")
    (tmp_path / "ca.key").write_text("nonsense")
    with pytest.raises(LocalProtocolError, match=r"ca\.key"):
        Authority(tmp_path)


def test_with_a_name_all_of_its_certificates_are_taken_back(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    for name in ("camera", "camera.abc"):
        for renew in (False, True, True):
            authority.issue_device(name, renew=renew)
    replaced = sorted(path.name for path in tmp_path.glob("camera.*.replaced.pem"))
    assert len(replaced) == 4
    authority.revoke("camera")
    text = openssl("crl", "-in", authority.revoked_path, "-noout", "-text")
    assert text.count("Serial Number:") == 3
    for path in (tmp_path / name for name in replaced if not name.startswith("camera.abc.")):
        serial = openssl("x509", "-in", path, "-noout", "-serial").strip().partition("=")[2]
        assert serial.lstrip("0") in text


@pytest.mark.parametrize("days", [float("nan"), -1e9, float("inf"), 1e9, "7", True])
def test_times_that_no_certificate_is_valid_for_leave_what_was_there(tmp_path: Path, days: Any) -> None:
    authority = Authority(tmp_path)
    authority.issue_device("camera")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(LocalProtocolError, match="expected how long it is valid, up to 3650"):
        authority.issue_device("camera", days=days, renew=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
