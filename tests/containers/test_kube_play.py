"""The plain target run by `podman kube play`: the very Deployments, a secret by reference, a request answered through both.

Needs root and podman; skipped otherwise. EKIBEN_TEST_BASE_IMAGE names a base image with python3 in place of the tests' own.
What podman has no notion of (Services and their names, policies) is left out: the pods share a network of their own.
"""

import base64
import json
import os  # noqa: TID251  podman reads it
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.deploying import box, environment, objects

HERE = Path(__file__).parent
IMAGE = "localhost/ekiben-kube-play:test"
SECONDS = 20


def podman(*arguments, network=None, check=True, **more):
    enter = ["nsenter", "--net", "--target", str(network)] if network else []
    own = {"CONTAINERS_CONF": str(HERE / "containers.conf")} if (HERE / "containers.conf").exists() else {}
    variables = {**own, **os.environ}
    done = subprocess.run(
        [*enter, "podman", *map(str, arguments)], capture_output=True, text=True, env=variables, check=False, **more
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def image(request, tmp_path_factory):
    missing = [name for name in ("podman", "nsenter", "unshare") if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        pytest.skip(
            f"podman kube play needs root and {', '.join(missing) or 'podman'}: apt-get install podman util-linux; not run"
        )
    base = os.environ.get("EKIBEN_TEST_BASE_IMAGE") or request.getfixturevalue("bases")[0]
    if podman("image", "exists", base, check=False).returncode:
        pytest.skip(f"no image {base} (EKIBEN_TEST_BASE_IMAGE): podman kube play is not run")
    folder = tmp_path_factory.mktemp("image")
    shutil.copy(HERE / "stand_in_box.py", folder / "box.py")
    lines = [f"FROM {base}", "COPY box.py /box.py", "RUN mkdir -p /home/bentoml/state /home/bentoml/bento/src && chown "
                                                    "1034:1034 /home/bentoml/state",
             "USER 1034:1034", 'ENTRYPOINT ["/usr/bin/python3", "/box.py"]']  # fmt: skip
    (folder / "Dockerfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    podman("build", "--quiet", "--isolation", "chroot", "--network", "host", "--tag", IMAGE, folder)
    yield IMAGE
    podman("rmi", "--force", IMAGE, check=False)


@pytest.fixture
def network():
    """A network of its own: no port of the machine is taken, and no rule of its firewall is left behind."""
    process = subprocess.Popen(["unshare", "--net", "sh", "-c", "ip link set lo up; exec sleep 600"])
    time.sleep(0.5)
    yield process.pid
    process.kill()
    process.wait()


def test_a_request_is_answered_through_gateway_and_engine(image, network, tmp_path):
    engine = {"replicas": {"min": 1, "max": 1}, "resources": {"cpu": "500m", "memory": "6Gi"}}
    told = environment(image=image, name="ekp", secrets={"engine_key": {"name": "ekp"}}, engine=engine)
    deployments = [one for one in objects("plain", told, box()) if one["kind"] == "Deployment"]
    for one in deployments:
        spec = one["spec"]["template"]["spec"]
        spec["hostNetwork"] = True
        # Podman publishes named ports, which the host's network has not, and probes by a curl that is not in there.
        for name in ("ports", "livenessProbe", "readinessProbe", "startupProbe"):
            del spec["containers"][0][name]
        for variable in spec["containers"][0]["env"]:
            if variable["name"] == "EKIBEN_ENGINE_URL":
                assert variable["value"] == "http://ekp-engine:8421"
                variable["value"] = "http://127.0.0.1:8421"
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({"engine-key": base64.b64encode(b"k" * 16).decode()}), encoding="utf-8")
    file = tmp_path / "plain.yaml"
    file.write_text("---\n".join(yaml.safe_dump(one) for one in deployments), encoding="utf-8")
    try:
        podman("secret", "create", "ekp", secret)
        podman("kube", "play", file, network=network)
        answer = asked(network)
    finally:
        podman("pod", "rm", "--force", "--time", "1", "ekp-gateway-pod-0", "ekp-engine-pod-0", network=network, check=False)
        podman("secret", "rm", "ekp", check=False)
        for volume in podman("volume", "ls", "--quiet", "--filter", "name=^ekp-", check=False).stdout.split():
            podman("volume", "rm", "--force", volume, check=False)

    assert len(deployments) == 2
    for part in ("gateway", "engine"):
        assert answer[part] == {"uid": 1034, "capabilities": 0, "no_new_privs": "1", "root": False, "tmp": True, "state": True}, (
            part
        )


def asked(network):
    url = "http://127.0.0.1:3000/v1/chat/completions"
    question = f"import urllib.request; print(urllib.request.urlopen({url!r}, b'{{}}', 10).read().decode())"
    deadline = time.monotonic() + SECONDS
    while True:
        done = subprocess.run(
            ["nsenter", "--net", "--target", str(network), "python3", "-c", question], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return json.loads(done.stdout)
        logs = "".join(
            podman("logs", f"ekp-{part}-pod-0-{part}", network=network, check=False).stderr for part in ("gateway", "engine")
        )
        assert time.monotonic() < deadline, f"{done.stderr}\n{logs}"
        time.sleep(0.5)
