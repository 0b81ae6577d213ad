"""The units of deploy/systemd.py in a real systemd, in a container: three times cold, answered, and asleep again.

Builds an image of Debian's packages (systemd, python3) once, under a minute; EKIBEN_TEST_SYSTEMD_IMAGE names one that is there.
"""

import os  # noqa: TID251  the engine's settings
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from deploy.systemd import SystemdBox, units

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "localhost/ekiben-test-systemd"
CONFIGURATION = """
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=30000:30000"]
cgroupns = "host"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
ASK = (
    "import sys,urllib.request as r;"
    "print(r.urlopen(r.Request('http://127.0.0.1:3000/a',data=b'{\"id\":\"%s\"}'),timeout=60).status)"
)


@pytest.fixture(scope="module")
def podman(tmp_path_factory):
    missing = [tool for tool in ("podman", "runc", "mmdebstrap") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"systemd is not tested: {', '.join(missing) or 'root'} is missing; apt-get install podman runc mmdebstrap")
    folder = tmp_path_factory.mktemp("podman")
    (folder / "containers.conf").write_text(CONFIGURATION)
    environment = {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")}

    def run(*arguments, check=True):
        command = ["podman", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    return run


@pytest.fixture(scope="module")
def image(podman, tmp_path_factory):
    if given := os.environ.get("EKIBEN_TEST_SYSTEMD_IMAGE"):
        yield given
        return
    tar = tmp_path_factory.mktemp("image") / "base.tar"
    packages = "systemd,systemd-sysv,python3"
    sources = "/etc/apt/sources.list.d/debian.sources"
    made = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", "bookworm", str(tar), sources]
    subprocess.run(made, check=True, timeout=300)
    podman("import", str(tar), IMAGE)
    tar.unlink()
    yield IMAGE
    podman("rmi", "--force", IMAGE, check=False)


@pytest.fixture
def machine(podman, image, tmp_path):
    """A running systemd with the units of a light box, by systemd's own proxy."""
    box = SystemdBox(
        ("/usr/bin/python3", "/srv/sleepy.py", "3001", "/var/lib/llm/asked"), python="/usr/bin/python3", folder="/srv",
        name="llm",
        ready_path="/health", idle_seconds=2, start_seconds=30, stop_seconds=5,
    )  # fmt: skip
    name = f"ekiben-systemd-{uuid.uuid4().hex[:8]}"
    # SYS_ADMIN, as on a machine: without it systemd can lock nothing in, and starts nothing that is to be (226/NAMESPACE).
    started = ["--systemd=always", "--cap-add", "SYS_ADMIN", "--network", "none", "--name", name]
    podman("run", "-d", *started, image, "/sbin/init")
    try:
        for unit, text in units(box, by="socket").items():
            (tmp_path / unit).write_text(text)
            podman("cp", str(tmp_path / unit), f"{name}:/etc/systemd/system/{unit}")
        podman("cp", str(ROOT / "tests" / "sleepy.py"), f"{name}:/srv/sleepy.py")

        def inside(*words, check=True):
            return podman("exec", name, *words, check=check)

        ends = time.monotonic() + 60
        while inside("systemctl", "is-system-running", check=False) not in {"running", "degraded"}:
            assert time.monotonic() < ends, "systemd does not come up"
            time.sleep(0.2)
        yield inside
    finally:
        podman("rm", "--force", "--time", "2", name, check=False)


def test_three_times_cold_each_answered_once(machine):
    machine("systemctl", "daemon-reload")
    machine("systemctl", "start", "llm.socket")
    colds = []
    for cycle in range(3):
        assert machine("systemctl", "is-active", "llm-box.service", check=False) == "inactive"
        began = time.monotonic()
        told = machine("python3", "-c", ASK % f"cold-{cycle}", check=False)
        colds.append(time.monotonic() - began)
        assert told == "200", machine("journalctl", "--no-pager", "-n", "40", check=False)
        assert machine("python3", "-c", ASK % f"warm-{cycle}") == "200"
        ends = time.monotonic() + 30
        while machine("systemctl", "is-active", "llm-box.service", check=False) != "inactive":
            assert time.monotonic() < ends, machine("systemctl", "status", "llm-box.service", check=False)
            time.sleep(0.2)
    asked = machine("cat", "/var/lib/llm/asked").split()

    assert asked == [f"{kind}-{cycle}" for cycle in range(3) for kind in ("cold", "warm")]
    print("cold requests answered after", [round(seconds, 2) for seconds in colds], "s")  # noqa: T201
