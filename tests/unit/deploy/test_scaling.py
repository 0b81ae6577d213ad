"""Scaling a Deployment, against an API server that answers as Kubernetes does."""

import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from deploy import scaling
from deploy.lifecycle import StartFailed, StopFailed
from deploy.scaling import ScaleStarter, Workload

PATH = "/apis/apps/v1/namespaces/box/deployments/engine/scale"


class Api:
    """The scale of one Deployment; its pods end one for each look after it was set to zero."""

    def __init__(self):
        self.wanted, self.present, self.seen = 0, 0, []
        self.status = 200

    async def scale(self, request):
        self.seen.append((request.method, request.headers.get("Authorization"), request.content_type))
        if self.status != 200:
            return web.json_response({"kind": "Status", "message": "no"}, status=self.status)
        if request.method == "PATCH":
            self.wanted = json.loads(await request.read())["spec"]["replicas"]
            self.present = max(self.present, self.wanted)
        elif self.present > self.wanted:
            self.present -= 1
        spec = {"replicas": self.wanted} if self.wanted else {}  # zero is left out
        return web.json_response({"kind": "Scale", "spec": spec, "status": {"replicas": self.present}})


@pytest.fixture
async def api(monkeypatch):
    monkeypatch.setattr(scaling, "_POLL_SECONDS", 0.001)
    made = Api()
    app = web.Application()
    app.router.add_route("*", PATH, made.scale)
    async with TestServer(app) as server:
        made.url = str(server.make_url("/"))
        yield made


@pytest.fixture
def account(tmp_path):
    (tmp_path / "token").write_text("first\n")
    return tmp_path


def starter(api, account, **more):
    return ScaleStarter(Workload("box", "engine"), api.url, account=account, **more)


async def test_it_is_scaled_up_and_down(api, account):
    made = starter(api, account, replicas=2)
    assert await made.running() is False
    await made.start()
    assert (api.wanted, await made.running()) == (2, True)
    await made.stop()

    assert (api.wanted, api.present) == (0, 0)
    assert {seen for seen in api.seen if seen[0] == "PATCH"} == {("PATCH", "Bearer first", "application/merge-patch+json")}


async def test_what_another_has_scaled_up_is_left_so(api, account):
    api.wanted = api.present = 5
    await starter(api, account).start()

    assert (api.wanted, [method for method, *_ in api.seen]) == (5, ["GET"])


async def test_the_token_is_read_each_time(api, account):
    made = starter(api, account)
    await made.running()
    (account / "token").write_text("second")
    await made.running()

    assert [token for _, token, _ in api.seen] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize(
    ("status", "told"),
    [(403, "verbs get and patch on deployments/scale"), (404, "there is no Deployment engine"), (500, "answered 500")],
)
async def test_what_is_refused_says_what_to_do(api, account, status, told):
    api.status = status
    made = starter(api, account)
    with pytest.raises(StartFailed, match=told):
        await made.start()
    with pytest.raises(StopFailed, match=told):
        await made.stop()


async def test_a_server_that_is_away_is_told(account):
    made = ScaleStarter(Workload("box", "engine"), "http://127.0.0.1:1", account=account)
    with pytest.raises(StartFailed, match="cannot be asked"):
        await made.running()


async def test_pods_that_do_not_end_are_told(api, account, monkeypatch):
    made = starter(api, account, stop_seconds=0.05)
    api.present = 10**9
    with pytest.raises(StopFailed, match="still had replicas"):
        await made.stop()
