"""What a run says about the machine it ran on: sizes and versions, never a name."""

import json
import os
import platform
from importlib.metadata import version

import torch

from peftkit.base.machine import (
    choose_device,
    describe_machine,
    describe_versions,
    peak_memory,
    total_memory,
)


def test_the_machine_is_described_without_its_name() -> None:
    facts = describe_machine()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cores"] == os.cpu_count()
    assert facts["memory_gib"] == round(total_memory() / 2**30, 1)
    assert (facts["gpu"] is None) == (not torch.cuda.is_available())
    assert facts["cpu"]
    assert platform.node() not in json.dumps(facts)


def test_versions_are_those_installed() -> None:
    versions = describe_versions()
    assert versions["python"] == platform.python_version()
    assert {"peftkit", "torch", "transformers", "peft"} <= versions.keys()
    assert all(versions[name] == version(name) for name in versions.keys() - {"python"})


def test_peak_memory_is_what_this_process_held() -> None:
    before = peak_memory()
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    assert 2**20 < before <= peak_memory() < total_memory()


def test_the_device_is_a_gpu_where_there_is_one() -> None:
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
