"""Keys, tokens and passwords are found by form, assignment and randomness; what merely speaks of them is not."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards import secrets
from guards.pii import ENTITIES, find_pii

ALNUM = "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0fG3iJ6kL9nO2qR5tU8"


def found(text):
    return [(span.entity, text[span.start : span.end]) for span in find_pii(text, secrets.ENTITIES, 0.4)]


@pytest.mark.parametrize(
    "key",
    [
        "AKIA" + "QWERTYUIOPASDFGH",
        "AIza" + ALNUM[:35],
        "ghp_" + ALNUM[:36],
        "glpat-" + ALNUM[:20],
        "xoxb-" + "1234567890-" + ALNUM[:24],
        "sk_live_" + ALNUM[:24],
        "sk-proj-" + ALNUM[:40],
        "hf_" + ALNUM[:34],
        "npm_" + ALNUM[:36],
        "LTAI" + ALNUM[:20],
        "123456789:AA" + ALNUM[:33],
    ],
)
@pytest.mark.parametrize("around", ["密钥是{}谢谢", "use {} here", '"{}"'])
def test_a_vendors_key_is_found_glued_or_not(key, around):
    assert found(around.format(key)) == [("SECRET_KEY", key)]


@pytest.mark.parametrize(
    ("text", "entity", "value"),
    [
        ("password: hunter22!", "SECRET_PASSWORD", "hunter22!"),
        ("DB_PASSWORD='s3cr3t-x'", "SECRET_PASSWORD", "s3cr3t-x"),
        ("我的密码是abc12345。", "SECRET_PASSWORD", "abc12345"),
        ("口令：a1b2c3d4", "SECRET_PASSWORD", "a1b2c3d4"),
        ("postgres://app:p4ss@db/x", "SECRET_PASSWORD", "p4ss"),
        ("api_key = 0123456789abcdef0123", "SECRET_KEY", "0123456789abcdef0123"),
        ("Authorization: Bearer abcdef0123456789abcdef01", "SECRET_TOKEN", "abcdef0123456789abcdef01"),
        ("x " + ALNUM[:40] + " y", "SECRET_KEY", ALNUM[:40]),
    ],
)
def test_finds(text, entity, value):
    assert found(text) == [(entity, value)]


def test_a_json_web_token():
    header, body = (base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (b'{"alg":"HS256"}', b'{"sub":"1234567890"}'))
    token = f"{header}.{body}.abcdefgh12345678"
    assert found(f"令牌{token}。") == [("SECRET_TOKEN", token)]


@pytest.mark.parametrize("end", ["\n-----END RSA PRIVATE KEY-----", ""])
def test_a_private_key_is_one_span_whether_its_end_is_there_or_not(end):
    block = "-----BEGIN RSA PRIVATE KEY-----\n" + f"{ALNUM}\n" * 3 + ALNUM[:20] + end
    assert found("key:\n" + block) == [("SECRET_PRIVATE_KEY", block)]


@pytest.mark.parametrize(
    "text",
    [
        "Your password is required to go on",
        "password: <your password>",
        "密码是什么意思",
        "max_tokens: 2048",
        "api_key = os.environ['API_KEY_NAME']",
        "commit 802032e4b825dc642cb6eb9a060e54bf8d69288f",
        "class AbstractSingletonProxyFactoryBeanDefinitionReader",
        base64.b64encode(b"a harmless text of some 5 words, No. 17 in base 64").decode(),
        "bearer of good news",
    ],
)
def test_leaves_alone(text):
    assert found(text) == []


@given(st.text(max_size=200))
def test_entropy_is_bounded_by_the_characters_there_are(text):
    if text:
        assert secrets.entropy(text) + 1e-9 >= 0
        assert secrets.entropy(text) <= len(set(text)).bit_length()


def test_secrets_are_entities_of_the_detector():
    assert set(secrets.ENTITIES) <= set(ENTITIES)
