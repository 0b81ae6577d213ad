"""The node of `up.sh`, as tests use it: kubectl, its dockerd, pods and services."""

import json
import os  # noqa: TID251  kubectl is told by the environment
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).parent
ADDRESS = "10.201.0.2"


class Node:
    """A node that is up; `folder` is where its binaries are."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.docker = [str(folder / "root/usr/bin/docker"), "-H", f"unix://{folder}/state/docker.sock"]
        self._environment = {**os.environ, "KUBECONFIG": str(folder / "state/admin.conf")}

    @staticmethod
    def script(folder: Path, name: str) -> None:
        subprocess.run([str(HERE / name)], env={**os.environ, "W": str(folder)}, check=True, timeout=300)

    def kubectl(self, *words: str, text: str | None = None, check: bool = True, timeout: float = 200) -> str:
        done = subprocess.run(
            ["kubectl", *words], input=text, env=self._environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout + ("" if check else done.stderr)

    def get(self, *words: str) -> dict:
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def apply(self, objects: list[dict]) -> str:
        return self.kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def pods(self, namespace: str, component: str) -> list[dict]:
        """Return a component's pods, those that end included."""
        return self.get("pods", "-n", namespace, "-l", f"app.kubernetes.io/component={component}")["items"]

    def service(self, namespace: str, name: str) -> str:
        """Return the URL of a service's own address."""
        spec = self.get("service", name, "-n", namespace)["spec"]
        return f"http://{spec['clusterIP']}:{spec['ports'][0]['port']}"

    def rolled_out(self, namespace: str, *deployments: str, seconds: int = 180) -> None:
        for name in deployments:
            self.kubectl("rollout", "status", f"deployment/{name}", "-n", namespace, f"--timeout={seconds}s", timeout=seconds + 9)

    def kill(self, pod: dict) -> None:
        """End a pod's one container with SIGKILL, as the kernel would."""
        container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("docker://")
        subprocess.run([*self.docker, "kill", container], check=True, capture_output=True)


def until(found, seconds: float, every: float = 0.2):
    """Return what `found` returns, once that is something."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(every)
    return value


def is_ready(pod: dict) -> bool:
    return "deletionTimestamp" not in pod["metadata"] and any(
        one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", [])
    )
