"""What an engine will run on is found, or told."""

import platform

import pytest

from services.settings import Settings
from services.target import Target, find_device, find_target


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_device_that_is_told_is_not_looked_for(device):
    assert find_device(Settings(device=device)) == device


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "expected"),
    [
        (
            "x86_64",
            "processor: 0\nflags\t\t: avx2 avx512f\nflags\t\t: none",
            Target("cpu", "x86_64", frozenset({"avx2", "avx512f"})),
        ),
        ("AMD64", "flags : avx2", Target("cpu", "x86_64", frozenset({"avx2"}))),
        ("arm64", "Features\t: asimd bf16\n", Target("cpu", "aarch64", frozenset({"asimd", "bf16"}))),
        ("riscv64", "isa : rv64gc\n", Target("cpu", "riscv64")),
    ],
)
def test_a_cpu_is_known_by_its_architecture_and_flags(tmp_path, monkeypatch, machine, cpuinfo, expected):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    (tmp_path / "cpuinfo").write_text(cpuinfo)

    assert find_target("cpu", tmp_path / "cpuinfo") == expected


def test_a_system_without_cpuinfo_has_no_flags(tmp_path):
    assert find_target("cpu", tmp_path / "gone").flags == frozenset()


def test_a_gpu_target_is_not_this_machine():
    assert find_target("cuda") == Target("cuda")
