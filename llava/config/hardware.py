"""What the machine has to train on; torch is asked once it must be, and imported then."""

from __future__ import annotations

from pathlib import Path


def hardware(use_cpu: bool) -> tuple[int, str]:
    """GPUs, and the precision that the hardware is fast in: `bf16`, `fp16` or `fp32`.

    Args:
        use_cpu: whether GPUs are left alone, so that there are none.
    """
    if not use_cpu:
        import torch

        gpus = torch.cuda.device_count()
        if gpus:
            return gpus, "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text() if cpu.exists() else ""
    return 0, "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"
