"""The text of the Dockerfile: its layers in order, and what does not get into it."""

import re

from deploy.container import LEFT_OUT, Image, requirements, weights

LOCK = """aiohttp==3.14.5 \\
    --hash=sha256:aa \\
    --hash=sha256:ab
opencv-python-headless==5.0.0.93 \\
    --hash=sha256:bb
torch==2.13.0+cpu \\
    --hash=sha256:cc
uv==0.13.9 \\
    --hash=sha256:dd
"""


def instructions(text):
    """The final stage's instructions, each on one line."""
    return re.sub(r" *\\\n *", " ", text.split("\nFROM ")[-1]).splitlines()


def test_layers_stand_from_what_changes_least_to_code():
    lines = instructions(Image("base:1", models=["base/1", "adapter/2"]).dockerfile())
    order = [next(i for i, line in enumerate(lines) if told in line) for told in (
        "useradd", "COPY environment", "uv pip install", "models/base/1", "models/adapter/2", "COPY data", "COPY code",
    )]  # fmt: skip

    assert order == sorted(order)
    assert [line for line in lines if line.startswith(("COPY", "RUN"))][-1].startswith("COPY code")


def test_the_environment_is_made_of_the_lock_without_tools_and_what_no_box_loads():
    kept, uv = requirements(LOCK)

    assert (
        kept == "aiohttp==3.14.5 \\\n    --hash=sha256:aa \\\n    --hash=sha256:ab\ntorch==2.13.0+cpu \\\n    --hash=sha256:cc\n"
    )
    assert uv == "uv==0.13.9 \\\n    --hash=sha256:dd\n"
    assert {"uv", "opencv-python-headless"} <= LEFT_OUT


def test_caches_are_where_a_read_only_root_lets_them_be():
    told = dict(
        re.findall(
            r'(\w+)="([^"]*)"', next(line for line in instructions(Image("base:1").dockerfile()) if line.startswith("ENV"))
        )
    )

    for name in ("FLASHINFER_WORKSPACE_BASE", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT", "XDG_CACHE_HOME"):
        assert told[name].startswith("/tmp/")


def test_offline_no_index_is_asked():
    online, offline = (Image("base:1", offline=told).dockerfile() for told in (False, True))

    assert offline.count("--no-index --find-links /run/wheels") == 2
    assert "ARG" not in offline
    assert "--torch-backend cpu" in online
    assert "--no-index" not in online


def test_a_gpus_image_keeps_headers_and_a_compiler():
    cpu, cuda = (Image("base:1", target=target).dockerfile() for target in ("cpu", "cuda"))

    assert "gcc" not in cpu
    assert " g++ gcc libc6-dev " in cuda
    assert "--headers" in cuda
    assert "--torch-backend" not in cuda


def test_it_runs_as_nobody_with_an_init_and_a_health_check():
    text = Image("base:1").dockerfile()

    assert "\nUSER 1034:1034\n" in text
    assert 'ENTRYPOINT ["/usr/bin/tini", "--"' in text
    assert "/readyz" in next(line for line in text.splitlines() if "health.py" in line)


def test_values_are_quoted():
    text = Image("base:1", variables={"GREETING": 'say "$HOME"\\n'}, labels={"title": "it's"}).dockerfile()

    assert r'GREETING="say \"\$HOME\"\\n"' in text
    assert '''LABEL title="it's"''' in text


def test_weights_apart_have_a_layer_each_and_nothing_else():
    assert weights(["base/1", "adapter/2"], {"title": "box"}).splitlines() == [
        "FROM scratch",
        'COPY ["models/base/1", "/base/1"]',
        'COPY ["models/adapter/2", "/adapter/2"]',
        'LABEL title="box"',
    ]
