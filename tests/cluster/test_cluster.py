"""What `ekiben deploy render --target plain` makes, on a real API server and node: docs/cluster-tests.md.

`W=/tmp/kube tests/cluster/build.sh` once, then `EKIBEN_CLUSTER=/tmp/kube pytest tests/cluster`, as root.
"""

import asyncio
import json
import os  # noqa: TID251  where the binaries are
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.cluster import light
from tests.cluster.node import ADDRESS, Node, is_ready, until

FOLDER = os.environ.get("EKIBEN_CLUSTER")
pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="no cluster: build one by W=/tmp/kube tests/cluster/build.sh, then set EKIBEN_CLUSTER=/tmp/kube"
)
SPACE, KEY = "light", "made-up-engine-key"
PACE = 0.1
"""Seconds from one word of the stand-in to the next."""
COMPONENTS = ("light-gateway", "light-activator", "light-engine")
ENVIRONMENT = {
    "name": SPACE,
    "namespace": SPACE,
    "longest_stream_seconds": 30,
    "gateway": {"replicas": {"min": 2, "max": 2}, "resources": {"cpu": "200m", "memory": "1Gi"}},
    "engine": {"resources": {"cpu": "1", "memory": "4Gi"}, "cold_start_seconds": 3, "idle_seconds": 20},
    "secrets": {"engine_key": {"name": "keys", "key": "engine"}},
}


@dataclass
class Said:
    """What came of one stream."""

    words: int = 0
    done: bool = False
    problem: str | None = None
    first_seconds: float = 0.0

    def is_whole(self, words: int) -> bool:
        return self.done and self.words == words and self.problem is None


async def ask(url: str, words: int, *, key: str | None = None, seconds: float = 90) -> Said:
    """Ask for a stream of so many words over a connection of its own."""
    said, began = Said(), time.monotonic()
    body = {"model": "chat", "messages": [{"role": "user", "content": "Count."}], "max_tokens": words, "stream": True}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with (
            asyncio.timeout(seconds),
            aiohttp.ClientSession(headers=headers) as client,
            client.post(f"{url}/v1/chat/completions", json=body) as response,
        ):
            if response.status != 200:
                said.problem = f"{response.status} {(await response.text())[:200]}"
                return said
            async for line in response.content:
                data = line.decode().removeprefix("data: ").strip()
                if data == "[DONE]":
                    said.done = True
                elif data and not data.startswith(":"):
                    event = json.loads(data)
                    if "error" in event:
                        said.problem = str(event["error"])
                    elif event["choices"] and event["choices"][0]["delta"].get("content"):
                        said.first_seconds = said.first_seconds or time.monotonic() - began
                        said.words += len(event["choices"][0]["delta"]["content"].split())
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        said.problem = repr(error)
    return said


@pytest.fixture(scope="session")
def node():
    folder = Path(FOLDER)
    running = (folder / "state/pid").exists()
    if not running:
        Node.script(folder, "up.sh")
    yield Node(folder)
    if not running:
        Node.script(folder, "down.sh")


@pytest.fixture(scope="session")
def packed(node, tmp_path_factory):
    """Return where the light box's code is; its image is on the node, as releases 1 and 2."""
    folder = tmp_path_factory.mktemp("light")
    source = light.box(folder)
    light.build(node.docker, folder, node.folder, ["1", "2"])
    return source


@pytest.fixture(scope="session")
def manifests(packed, tmp_path_factory):
    """Return what makes the objects of a release, whose engine loads for so many seconds."""

    def made(release="1", load_seconds=2.0):
        environment = {**ENVIRONMENT, "image": f"{light.NAME}:{release}"}
        objects = light.render(packed, environment, tmp_path_factory.mktemp("rendered"))
        return light.reduced(light.standing_in(objects, load_seconds, PACE))

    return made


@pytest.fixture(scope="session")
def applied(node, manifests):
    """Apply release 1, and wait until all of it is ready."""
    objects = manifests()
    node.kubectl("create", "namespace", SPACE)
    try:
        node.kubectl("create", "secret", "generic", "keys", "-n", SPACE, f"--from-literal=engine={KEY}")
        began = time.monotonic()
        node.apply(objects)
        node.rolled_out(SPACE, *COMPONENTS)
        yield objects, time.monotonic() - began
    finally:
        node.kubectl("delete", "namespace", SPACE, "--timeout=120s")


@pytest.fixture
def box(node, applied):
    """Return the URL of the gateway's service, with all gateways ready."""
    until(lambda: sum(map(is_ready, node.pods(SPACE, "gateway"))) == 2, 120)
    return node.service(SPACE, "light-gateway")


def of(objects, kind, name):
    return next(one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name)


def test_all_of_it_is_applied_and_ready(node, applied, tell):
    """The API server keeps what was rendered, and kubelet's startup and readiness probes pass."""
    objects, seconds = applied
    for name in COMPONENTS:
        wanted = of(objects, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]
        kept = node.get("deployment", name, "-n", SPACE)["spec"]["template"]["spec"]["containers"][0]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert kept[probe].items() >= {key: value for key, value in wanted[probe].items() if key != "httpGet"}.items()

    tell(f"apply to all ready: {seconds:.1f} s")
    assert all(one["status"]["containerStatuses"][0]["restartCount"] == 0 for one in node.pods(SPACE, "gateway"))


def test_pods_run_as_nobody_in_particular_on_a_root_they_cannot_write(node, box):
    run = ("exec", "-n", SPACE, "deployment/light-gateway", "--")

    assert node.kubectl(*run, "id", "-u").strip() == "1034"
    assert "Read-only file system" in node.kubectl(*run, "touch", "/home/bentoml/x", check=False)


def test_the_activator_may_scale_the_engine_and_nothing_else(node, applied):
    def may(*words):
        account = f"--as=system:serviceaccount:{SPACE}:light-activator"
        return node.kubectl("auth", "can-i", *words, "-n", SPACE, account, check=False).splitlines()[-1]

    assert may("patch", "deployments.apps/light-engine", "--subresource=scale") == "yes"
    assert may("patch", "deployments.apps/light-gateway", "--subresource=scale") == "no"
    assert may("patch", "deployments.apps/light-engine") == "no"
    assert may("get", "secrets") == "no"


def test_network_policies_are_accepted(node, applied):
    """They are kept as rendered; without a network plugin this node does not enforce them, so nothing is said of that."""
    for name in COMPONENTS:
        kept = node.get("networkpolicy", name, "-n", SPACE)["spec"]
        assert kept["podSelector"] == of(applied[0], "NetworkPolicy", name)["spec"]["podSelector"]
        assert sorted(kept["policyTypes"]) == ["Egress", "Ingress"]


def own_start(node, load_seconds, name="own-start"):
    """Return the seconds from `docker run` of the engine's container to its first answer."""
    command = [*node.docker, "run", "--detach", "--rm", "--name", name, "--publish", f"{ADDRESS}:9421:8421"]
    command += ["--memory", "4g", "--cpus", "1", f"{light.NAME}:1", *light.STAND_IN, "--load-seconds", str(load_seconds)]
    listed = [*node.docker, "ps", "--all", "--format", "{{.Names}}"]
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    try:
        until(lambda: asyncio.run(ask(f"http://{ADDRESS}:9421", 1, seconds=5)).done, 90, every=0.05)
        return time.monotonic() - began
    finally:
        subprocess.run([*node.docker, "kill", name], check=False, capture_output=True)
        until(lambda: name not in subprocess.run(listed, capture_output=True, text=True, check=True).stdout, 30)


def at_zero(node):
    """Wait until the activator has taken the engine away; return how long that took."""
    began = time.monotonic()
    until(lambda: not node.pods(SPACE, "engine"), 120)
    assert node.get("deployment", "light-engine", "-n", SPACE)["spec"]["replicas"] == 0
    return time.monotonic() - began


@pytest.mark.parametrize("load_seconds", [2.0, 10.0])
def test_from_zero_to_one_to_zero(node, box, manifests, load_seconds, tell):
    """Nothing of the engine runs; a request brings it and is answered; when idle it is taken away. Thrice."""
    node.apply(manifests(load_seconds=load_seconds))
    node.rolled_out(SPACE, "light-gateway", "light-activator")
    through, own = [], []
    for _ in range(3):
        at_zero(node)
        own.append(own_start(node, load_seconds))
        said = asyncio.run(ask(box, 2))
        assert said.is_whole(2), said
        through.append(said.first_seconds)
    gone = at_zero(node)

    ratio = statistics.median(through) / statistics.median(own)
    shown = [" ".join(f"{seconds:.1f}" for seconds in times) for times in (through, own)]
    tell(f"0 -> 1, {load_seconds:g} s of loading: first word after {shown[0]} s; docker run {shown[1]} s; ratio {ratio:.2f}")
    tell(f"1 -> 0: gone {gone:.1f} s after the last answer, of which 20 s idle")


async def under_load(url, streams, words, during):
    """Keep so many streams under way while `during` runs, in a thread; return what came of each and the seconds of `during`."""
    over, outcomes = asyncio.Event(), []

    async def caller():
        while not over.is_set():
            outcomes.append(await ask(url, words))

    callers = [asyncio.create_task(caller()) for _ in range(streams)]
    await asyncio.sleep(3)
    began = time.monotonic()
    await asyncio.to_thread(during)
    seconds = time.monotonic() - began
    over.set()
    await asyncio.gather(*callers)
    return outcomes, seconds


def test_a_rolling_update_under_32_streams_fails_none(node, box, manifests, tell):
    """Gateway, activator and engine are all replaced at once while 32 streams run, each of 8 s on a connection of its own."""
    words = 80

    def update():
        node.apply(manifests(release="2"))
        node.rolled_out(SPACE, *COMPONENTS)
        until(lambda: all(len(node.pods(SPACE, name)) == count for name, count in (("gateway", 2), ("activator", 1))), 90)

    assert asyncio.run(ask(box, 2)).is_whole(2)
    outcomes, seconds = asyncio.run(under_load(box, 32, words, update))
    failed = [said for said in outcomes if not said.is_whole(words)]
    pods = [one for name in ("gateway", "activator", "engine") for one in node.pods(SPACE, name)]
    images = {one["spec"]["containers"][0]["image"] for one in pods}

    tell(f"rolling update of all three under 32 streams: {len(outcomes)} streams, {len(failed)} failed, {seconds:.0f} s")
    assert images == {f"{light.NAME}:2"}
    assert failed == [], failed[:3]


def test_a_killed_gateway_takes_its_own_streams_alone(node, box, tell):
    """Streams through the other pod go on; the killed one's end at once; then requests are answered, and it comes back."""
    words = 100

    async def kill():
        killed, kept = (f"http://{one['status']['podIP']}:3000" for one in pods)
        streams = {url: [asyncio.create_task(ask(url, words)) for _ in range(8)] for url in (killed, kept)}
        await asyncio.sleep(3)
        began = time.monotonic()
        await asyncio.to_thread(node.kill, pods[0])
        cut = await asyncio.gather(*streams[killed])
        heard = time.monotonic() - began
        asked, last_failed = 0, began
        while (now := time.monotonic()) < began + 15:
            asked += 1
            if not (await ask(box, 1, seconds=20)).is_whole(1):
                last_failed = now
            await asyncio.sleep(0.1)
        return await asyncio.gather(*streams[kept]), cut, heard, last_failed - began, asked

    pods = sorted(node.pods(SPACE, "gateway"), key=lambda one: one["metadata"]["name"])
    kept, cut, heard, away, asked = asyncio.run(kill())
    until(lambda: all(map(is_ready, node.pods(SPACE, "gateway"))), 90)
    after = [asyncio.run(ask(box, 2)).is_whole(2) for _ in range(10)]

    tell(f"killed gateway: its streams ended within {heard:.1f} s; of {asked} requests the last to fail began {away:.1f} s after")
    assert all(said.is_whole(words) for said in kept), kept
    assert not any(said.is_whole(words) for said in cut)
    assert away < 10
    assert all(after)
    assert node.get("pod", pods[0]["metadata"]["name"], "-n", SPACE)["status"]["containerStatuses"][0]["restartCount"] >= 1


def test_a_killed_engine_ends_its_streams_with_an_error_and_comes_back(node, box, tell):
    """What was streaming is told so; who comes while it starts anew is held, and answered."""

    async def kill():
        assert (await ask(box, 2)).is_whole(2)
        stream = asyncio.create_task(ask(box, 200))
        await asyncio.sleep(3)
        [pod] = node.pods(SPACE, "engine")
        began = time.monotonic()
        await asyncio.to_thread(node.kill, pod)
        cut = await stream
        heard = time.monotonic() - began
        return cut, heard, [await ask(box, 2) for _ in range(3)], time.monotonic() - began

    cut, heard, after, seconds = asyncio.run(kill())

    tell(f"killed engine: its stream ended within {heard:.1f} s; the next three requests were answered within {seconds:.1f} s")
    assert cut.problem is not None or not cut.done
    assert heard < 10
    assert all(said.is_whole(2) for said in after), after


def test_a_drained_node_ends_one_gateway_and_keeps_the_other(node, box, tell):
    """With one node there is nowhere to go: the budget lets one gateway be evicted, which ends its streams, and no second."""
    words, told = 60, []

    def drain():
        # Gateways only: an engine and an activator that are drained from the only node are away for as long as it is.
        which = ("--pod-selector=app.kubernetes.io/component=gateway", "--ignore-daemonsets", "--delete-emptydir-data")
        told.append(node.kubectl("drain", "node", *which, "--timeout=30s", check=False))

    try:
        outcomes, _ = asyncio.run(under_load(box, 8, words, drain))
        waiting = sorted(one["status"]["phase"] for one in node.pods(SPACE, "gateway"))
    finally:
        node.kubectl("uncordon", "node")
    until(lambda: sum(map(is_ready, node.pods(SPACE, "gateway"))) == 2, 120)
    failed = [said for said in outcomes if not said.is_whole(words)]

    tell(
        f"drained node under 8 streams: {len(outcomes)} streams, {len(failed)} failed; gateways {waiting} until it was uncordoned"
    )
    assert "would violate the pod's disruption budget" in told[0]
    assert failed == [], failed[:3]
    assert waiting == ["Pending", "Running"]
