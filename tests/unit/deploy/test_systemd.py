"""Units for systemd: what is in them, what cannot be, and that systemd takes them."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from deploy.systemd import BadUnit, SystemdBox, units

BOX = SystemdBox(
    ("/usr/bin/python3", "-m", "bentoml", "serve", "a b", "100%$HOME"), python=sys.executable, folder="/srv", name="llm"
)


def test_by_socket_there_are_three_and_the_box_stops_when_it_is_not_needed():
    made = units(BOX, by="socket")

    assert sorted(made) == ["llm-box.service", "llm.service", "llm.socket"]
    assert "StopWhenUnneeded=yes" in made["llm-box.service"].split("[Service]")[0]
    assert "--exit-idle-time=300s --connections-max=1024 127.0.0.1:3001\n" in made["llm.service"]
    assert "Requires=llm-box.service llm.socket" in made["llm.service"]
    assert "ListenStream=127.0.0.1:3000" in made["llm.socket"]


def test_by_activator_there_is_one():
    made = units(BOX)

    assert list(made) == ["llm.service"]
    assert '"--upstream" "http://127.0.0.1:3001" "--ready-path" "/readyz"' in made["llm.service"]


def test_no_word_of_the_command_is_expanded():
    line = next(line for line in units(BOX, by="socket")["llm-box.service"].splitlines() if line.startswith("ExecStart="))

    assert line == 'ExecStart="/usr/bin/python3" "-m" "bentoml" "serve" "a b" "100%%$$HOME"'


@pytest.mark.parametrize("by", ["activator", "socket"])
def test_all_that_runs_is_locked_in(by):
    for name, text in units(BOX, by=by).items():
        if name.endswith(".service"):
            assert {"DynamicUser=yes", "NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet="} <= set(
                text.split("\n")
            )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "../x"}, "no name for a unit"),
        ({"command": ("python3",)}, "absolute path"),
        ({"folder": "srv"}, "'srv' is no absolute path"),
        ({"address": "127.0.0.1:3000"}, "cannot have the address"),
        ({"environment": {"A": "b\nExecStart=/bin/evil"}}, "several lines"),
        ({"listen": "1\n[Service]"}, "several lines"),
    ],
)
def test_what_cannot_be_written_is_refused(change, told):
    with pytest.raises(BadUnit, match=told):
        SystemdBox(**{"command": BOX.command, "python": BOX.python, "folder": "/srv", **change})


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze: install systemd")
@pytest.mark.parametrize("by", ["activator", "socket"])
def test_systemd_finds_nothing_wrong(tmp_path, by):
    box = SystemdBox(("/bin/true",), python="/usr/bin/env", folder="/tmp", environment={"A": 'a "b" %'}, proxy="/bin/true")
    for name, text in units(box, by=by).items():
        (tmp_path / name).write_text(text)
    files = [str(path) for path in tmp_path.iterdir()]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "ekiben" in line]

    assert (done.returncode, said) == (0, [])


def test_a_box_with_a_gpu_sees_devices_and_nothing_else_does():
    hidden = {name for name, text in units(replace(BOX, gpu=True), by="socket").items() if "PrivateDevices=yes" in text}

    assert hidden == {"llm.service"}
    assert "PrivateDevices" not in units(replace(BOX, gpu=True))["llm.service"]
    assert "PrivateDevices=yes" in units(BOX)["llm.service"]


def test_systemd_waits_for_the_drain_and_the_stop():
    made = units(replace(BOX, drain_seconds=100, stop_seconds=50))["llm.service"]

    assert '"--stop-seconds" "50" "--drain-seconds" "100"' in made
    assert int(re.search(r"TimeoutStopSec=(\d+)", made)[1]) > 150
