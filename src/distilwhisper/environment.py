"""What this machine has: versions, devices, number formats, attention kernels, optional packages."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distilwhisper.tables import Shown

REQUIRED = ("distilwhisper", "torch", "transformers", "accelerate", "datasets", "evaluate", "jiwer", "safetensors")
OPTIONAL = {
    "espeakng-loader": ("demo", "the demo's synthetic speech"),
    "matplotlib": ("plots", "plots and report pages"),
    "wandb": ("wandb", "tracking with Weights & Biases"),
    "tensorboard": ("tensorboard", "tracking with TensorBoard"),
    "flash-attn": ("flash-attn", "FlashAttention 2 on Ampere GPUs and newer"),
    "av": ("av", "m4a and webm recordings"),
    "silero-vad": ("vad", "finding speech in long recordings"),
    "ray": ("ray", "labelling inside Ray Data"),
    "openai-whisper": ("openai-whisper", "exports to openai-whisper"),
    "ctranslate2": ("ctranslate2", "exports to CTranslate2 and faster-whisper"),
    "pywhispercpp": ("ggml", "exports to whisper.cpp"),
    "onnxruntime": ("onnx", "exports to ONNX and Transformers.js"),
}
"""Package to the extra that installs it, and what it is for."""

GIB = 2**30


@dataclass
class Environment(Shown):
    """What was found; ``print(environment)`` shows tables.

    Attributes:
        python: Version and platform.
        packages: Version by package; None for one that is missing.
        cpu: Cores, memory in GiB, and the matrix instructions that make bf16 fast.
        devices: Name, memory in GiB and compute capability of each accelerator.
        attention: Whether each attention kernel can be used here, or why not.
        free_disk_gib: Free space of the working directory.
    """

    python: str
    packages: dict[str, str | None]
    cpu: dict[str, Any]
    devices: list[dict[str, Any]] = field(default_factory=list)
    attention: dict[str, str] = field(default_factory=dict)
    free_disk_gib: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return everything by name."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [self.python]
        lines.append(f"CPU: {self.cpu['cores']} cores, {self.cpu['memory_gib']:.0f} GiB memory")
        lines.append(f"bf16 on the CPU: {self.cpu['bf16'] or 'emulated, slow: use float32'}")
        lines.append(f"free disk here: {self.free_disk_gib:.0f} GiB")
        lines += [f"device: {d['name']}, {d['memory_gib']:.0f} GiB, capability {d['capability']}" for d in self.devices]
        lines += [] if self.devices else ["device: none, everything runs on the CPU"]
        lines += ["", "attention kernels", *(f"  {kernel:<18} {state}" for kernel, state in self.attention.items())]
        lines += ["", "packages", *(f"  {name:<18} {self.packages[name] or 'missing'}" for name in REQUIRED)]
        lines += ["", "optional packages"]
        for name, (extra, purpose) in OPTIONAL.items():
            found = self.packages[name]
            install = "" if found else f": pip install 'distilwhisper[{extra}]'"
            lines.append(f"  {name:<18} {found or '-':<12} {purpose}{install}")
        return "\n".join(lines)


def inspect_environment() -> Environment:
    """Return what this machine has."""
    import torch  # here, so that the command line can show its help without it

    devices = [_cuda_device(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append({"name": "Apple GPU (mps)", "memory_gib": _memory_gib(), "capability": "mps"})
    return Environment(
        python=f"Python {platform.python_version()}, {platform.platform()}",
        packages={name: _version(name) for name in (*REQUIRED, *OPTIONAL)},
        cpu={"cores": os.cpu_count(), "memory_gib": _memory_gib(), "bf16": _fast_bf16()},
        devices=devices,
        attention={"eager": "yes", "sdpa": "yes", "flash_attention_2": _flash_attention(devices)},
        free_disk_gib=shutil.disk_usage(Path.cwd()).free / GIB,
    )


def _cuda_device(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    capability = f"{properties.major}.{properties.minor}"
    return {"name": properties.name, "memory_gib": properties.total_memory / GIB, "capability": capability}


def _flash_attention(devices: list[dict[str, Any]]) -> str:
    if not any(device["capability"][0].isdigit() and float(device["capability"]) >= 8 for device in devices):
        return "no: it needs an Ampere GPU or newer; sdpa is used"
    return "yes" if _version("flash-attn") else "no: pip install 'distilwhisper[flash-attn]'; sdpa is used"


def _fast_bf16() -> str:
    """Return the CPU's instructions for bf16 matrix products, if it has any."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return "arm" if platform.machine() == "arm64" else ""
    flags = set(path.read_text().split("flags", 1)[-1].split("\n", 1)[0].split())
    return ", ".join(name for name in ("avx512_bf16", "amx_bf16", "bf16") if name in flags)


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB if hasattr(os, "sysconf") else 0.0


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
