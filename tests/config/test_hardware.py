"""What a machine has to train on."""

from __future__ import annotations

import subprocess
import sys

import torch

from llava.config.hardware import hardware


def test_without_gpus_the_cpu_says_what_it_is_fast_in(monkeypatch):
    assert hardware(use_cpu=True)[0] == 0 and hardware(use_cpu=True)[1] in ("bf16", "fp32")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert hardware(use_cpu=False) == (2, "fp16") and hardware(use_cpu=True)[0] == 0


def test_torch_is_not_imported_for_the_cpu():
    code = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("hardware", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.hardware(True)
assert "torch" not in sys.modules
"""
    file = sys.modules[hardware.__module__].__file__
    assert file is not None
    subprocess.run([sys.executable, "-S", "-c", code, file], check=True)
