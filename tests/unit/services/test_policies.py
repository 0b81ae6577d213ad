"""Policies by caller, and as their files are now."""

import shutil

import pytest

from guards.detectors import Detectors, Unavailable
from services import policies as module
from services.bundle import BundleError, load_bundle
from services.caller import Caller, CallerHeaders
from services.policies import Policies
from services.protocol import ChatRequest

RULES = (
    "policy: safe, policies: [{tenant: acme, policy: open}, {role: auditor, policy: open}, "
    "{tenant: beta, role: boss, policy: open}], "
)


@pytest.fixture
def ruled(bundle_folder):
    path = bundle_folder / "bundle.yaml"
    path.write_text(path.read_text().replace("chat: {prompt: plain, policy: safe, ", "chat: {prompt: plain, " + RULES))
    return path


@pytest.mark.parametrize(
    ("headers", "policy"),
    [
        ({}, "safe"), ({"x-tenant": "acme"}, "open"), ({"x-tenant": "other"}, "safe"), ({"x-roles": "clerk, auditor"}, "open"),
        ({"x-roles": "auditors"}, "safe"), ({"x-tenant": "beta"}, "safe"), ({"x-tenant": "beta", "x-roles": "boss"}, "open"),
    ],
)  # fmt: skip
def test_the_first_rule_that_fits_names_the_policy(ruled, pipeline, headers, policy):
    caller = CallerHeaders(tenant="X-Tenant", roles="X-Roles").read(headers)
    route = pipeline.route(ChatRequest(model="chat", messages=[{"role": "user", "content": "x"}]), caller)

    assert route.policy.name == policy
    assert route.versions()["policy"] == route.policy.label


def test_headers_that_nobody_named_are_not_believed():
    assert CallerHeaders().read({"x-tenant": "acme", "x-roles": "boss"}) == Caller()


def test_a_rule_for_nobody_and_one_with_an_unknown_policy_are_refused(ruled):
    text = ruled.read_text()
    ruled.write_text(text.replace("{tenant: acme, policy: open}", "{policy: open}"))
    with pytest.raises(BundleError, match="name a tenant or a role"):
        load_bundle(ruled)
    ruled.write_text(text.replace("{tenant: acme, policy: open}", "{tenant: acme, policy: opn}"))
    with pytest.raises(BundleError, match="no policy named 'opn'"):
        load_bundle(ruled)


@pytest.fixture
def policies(bundle_folder, monkeypatch):
    monkeypatch.setattr(module, "_EVERY_SECONDS", 0)
    return Policies(load_bundle(bundle_folder / "bundle.yaml"), Detectors())


def rewrite(path, text):
    path.write_text(text)
    shutil.copystat("/", path)  # another time of change, however fast the test
    path.chmod(0o600)


def test_a_changed_file_is_read_again(policies, bundle_folder):
    before = policies.get("safe")
    rewrite(bundle_folder / "safe.yaml", "input: [{detector: pii, action: block}]")

    assert policies.get("safe").content.input[0].action == "block"
    assert policies.get("safe").version != before.version


@pytest.mark.parametrize("text", ["input: [", "input: [{detector: magic}]", "input: [{detector: names, action: mask}]", None])
def test_a_broken_file_changes_nothing(policies, bundle_folder, text):
    before = policies.get("safe")
    if text is None:
        (bundle_folder / "safe.yaml").unlink()
    else:
        rewrite(bundle_folder / "safe.yaml", text)

    assert policies.get("safe") == before
    rewrite(bundle_folder / "safe.yaml", "output: [{detector: pii, action: mask}]")
    assert policies.get("safe") != before


def test_a_word_list_that_changes_is_read_again(policies, bundle_folder):
    (bundle_folder / "words.txt").write_text("# category: animals\nlama\n")
    rewrite(bundle_folder / "safe.yaml", "output: [{detector: moderation, action: mask, lists: [words.txt]}]")
    before = policies.get("safe")
    rewrite(bundle_folder / "words.txt", "# category: animals\nalpaca\n")

    assert policies.get("safe").version != before.version


def test_a_policy_that_needs_a_model_the_process_lacks_is_refused(bundle_folder):
    loaded = load_bundle(bundle_folder / "bundle.yaml")
    (bundle_folder / "safe.yaml").write_text("input: [{detector: names, action: mask}]")
    with pytest.raises(BundleError, match="the bundle has no `names`"):
        load_bundle(bundle_folder / "bundle.yaml")
    from guards.policy import load_policy

    loaded.policies["safe"] = load_policy("safe", bundle_folder / "safe.yaml")
    with pytest.raises(Unavailable, match=r"add `names` to bundle\.yaml"):
        Policies(loaded, Detectors())
