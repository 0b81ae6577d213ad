"""An adapter's versions while the box serves: added, loaded, promoted, split, rolled back, unloaded, removed; after a loss."""

import shutil
import time
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save_file

from adapters.manifest import WEIGHTS, digest_file, read_manifest, write_manifest

ROOT = Path(__file__).resolve().parents[2]
TEXT = "book me a hotel room in boston for tonight"


@pytest.fixture(scope="module")
def admin(box, ekiben, home):
    """The commands of an adapter's life, against the served box."""
    from tests.e2e.conftest import ADMIN_TOKEN

    def run(command, *arguments):
        where = () if command in {"add", "list", "remove"} else ("--url", box.url)
        return ekiben(
            "adapter", command, *arguments, *where, BENTOML_HOME=str(home), EKIBEN_STATE_DIR=str(home / "state"),
            EKIBEN_ADMIN_TOKEN=ADMIN_TOKEN,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def second(admin, tmp_path_factory):
    """Another version of travel-intents, whose weights add nothing: it answers as the base. The last test removes it."""
    folder = tmp_path_factory.mktemp("second") / "adapter"
    shutil.copytree(ROOT / "adapters/travel-intents", folder)
    tensors = load_file(folder / WEIGHTS)
    save_file({k: v * 0 if "lora_B" in k else v for k, v in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    write_manifest(folder, read_manifest(folder).model_copy(update={"sha256": digest_file(folder / WEIGHTS)}))
    return admin("add", str(folder)).split()[-1]


def ask(url, **more):
    body = {"model": "travel-intents", "messages": [{"role": "user", "content": TEXT}], **more}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
    return answer.status_code, answer.json()


def version_of(answer):
    status, body = answer
    assert status == 200, body
    return "travel-intents@" + body["ekiben"]["adapter"].rpartition(":")[2]


def packed(box):
    return next(card for card in httpx.get(f"{box.url}/v1/models").json()["data"] if card["id"] == "travel-intents")["ekiben"]


def test_adding_changes_nothing_that_serves(box, admin, second):
    assert second in admin("list")
    assert version_of(ask(box.url)) != second


def test_load_promote_and_roll_back_without_a_restart(box, admin, second):
    first = version_of(ask(box.url))
    admin("load", second)
    assert version_of(ask(box.url)) == first
    admin("promote", second)
    assert version_of(ask(box.url)) == second
    admin("rollback", "travel-intents")

    assert version_of(ask(box.url)) == first
    assert ask(box.url)[1]["choices"][0]["message"]["content"] == "book_hotel"


def test_what_an_alias_stands_for_cannot_go(box, admin, second):
    admin("promote", second, "--alias", "canary")
    refused = httpx.post(
        f"{box.url}/admin/adapters/unload", json={"adapter": second}, headers={"authorization": "Bearer a-token-of-the-tests-own"}
    )

    assert refused.status_code == 409
    assert "promote another version first" in refused.json()["error"]["message"]


def test_the_slots_are_visible(box, second):
    card = packed(box)
    metrics = httpx.get(f"{box.url}/metrics").text

    assert [one["loaded"] for one in card["adapters"]] == [True]
    assert 'llm_adapter_versions_loaded{adapter="travel-intents"} 2.0' in metrics
    assert "llm_adapter_slots 4.0" in metrics


def test_a_replica_serves_the_same_set_and_may_split_it(box, serve, home, tmp_path, second):
    """Another box with its own engine over the same state: it was packed with one version, and loads the other by itself."""
    for part in ("prompts/templates", "guards/policies"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "bundle.lock", tmp_path)
    bundle = (ROOT / "bundle.yaml").read_text()
    split = "    adapter: { travel-intents@live: 50, travel-intents@canary: 50 }\n"
    (tmp_path / "bundle.yaml").write_text(bundle.replace("    adapter: travel-intents\n    only_labels: true\n", split))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/models").symlink_to(home / "models")
    environment = {"EKIBEN_BUNDLE": str(tmp_path / "bundle.yaml"), "EKIBEN_STATE_DIR": str(home / "state")}
    replica = serve("services.gateway:Gateway", ROOT, tmp_path / "home", tmp_path / "serve.log", environment).wait_ready()
    try:
        by_user = {user: version_of(ask(replica.url, user=user)) for user in map(str, range(12))}
        again = {user: version_of(ask(replica.url, user=user)) for user in by_user}
    finally:
        replica.stop()

    assert set(by_user.values()) == {second, version_of(ask(box.url))}
    assert again == by_user


def test_a_lost_engine_comes_back_with_what_was_loaded(box, admin, second):
    import psutil

    admin("promote", second)
    engine = next(
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.laddr and connection.laddr.port == box.engine_port and connection.status == "LISTEN"
    )
    psutil.Process(engine).kill()
    deadline = time.monotonic() + 180
    answers = []
    while time.monotonic() < deadline:
        status, body = ask(box.url)
        answers.append(status)
        if status == 200:
            break
        time.sleep(1)

    assert version_of((status, body)) == second
    assert set(answers) <= {503, 200}
    admin("rollback", "travel-intents")


def test_unloaded_is_404_and_removed_is_gone(box, admin, second):
    """The last test of this file: it takes the second version away."""
    first = version_of(ask(box.url))
    headers = {"authorization": "Bearer a-token-of-the-tests-own"}
    admin("promote", first, "--alias", "canary")
    admin("unload", second)
    refused = httpx.post(
        f"{box.url}/admin/adapters/promote", json={"adapter": "travel-intents@0123456789abcdef"}, headers=headers
    )

    assert refused.status_code == 409
    assert "not in the model store" in refused.json()["error"]["message"]
    assert httpx.post(f"{box.engine_url}/v1/completions", json={"model": second, "prompt": "x"}).status_code == 404
    admin("remove", second)
    assert second not in admin("list")
