"""What a phase of a cell takes while it runs: peak memory and energy. Costs a few system calls a phase.

Bytes and joules. Definitions are in docs/measurements.md. A figure that this machine does not give is absent.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

POWERCAP = Path("/sys/class/powercap")


class Counter(Protocol):
    """Energy used since some time in the past."""

    name: str

    def joules(self) -> float: ...


class Meter:
    """Peaks and energy by phase. Phases nest: what runs in an inner one is not charged to the outer.

    memory: `<phase>_peak` and on CUDA `<phase>_reserved`; a phase that comes again keeps its largest peak. energy:
    joules by phase, summed; both over all devices. On the CPU memory is that of the process, interpreter included.
    """

    def __init__(self, devices: Sequence[torch.device], counter: Counter | None = None):
        self.devices, self.counter = devices, counter
        self.memory: dict[str, int | str] = {"device": devices[0].type}
        self.energy: dict[str, float] = {}
        self._running: list[str] = []
        self._joules = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._close()
        self._running.append(name)
        self._known = reset_peak(self.devices)
        try:
            yield
        finally:
            self._close()
            self._running.pop()
            self._known = reset_peak(self.devices)

    def sample(self) -> None:
        """Charge the energy used so far. Call it now and then: the counters of processors run over."""
        if self.counter is None:
            return
        joules = self.counter.joules()
        if self._running:
            name = self._running[-1]
            self.energy[name] = self.energy.get(name, 0.0) + joules - self._joules
        self._joules = joules

    def _close(self) -> None:
        """Note what the innermost phase took since it began, or since an inner one ended."""
        self.sample()
        if not self._running or not self._known:
            return
        name = self._running[-1]
        if self.memory["device"] == "cuda":
            self._keep(f"{name}_peak", sum(map(torch.cuda.max_memory_allocated, self.devices)))
            self._keep(f"{name}_reserved", sum(map(torch.cuda.max_memory_reserved, self.devices)))
        elif (peak := resident("VmHWM")) is not None:
            self._keep(f"{name}_peak", peak)

    def _keep(self, name: str, value: int) -> None:
        self.memory[name] = max(value, int(self.memory.get(name, 0)))


# ---- memory ----------------------------------------------------------------------------------------------------


def reset_peak(devices: Sequence[torch.device]) -> bool:
    """Let the peaks begin at what is in use now; False where the system does not let a process do that."""
    if devices[0].type == "cuda":
        for device in devices:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        return True
    _give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _give_back() -> None:
    """Freed blocks that the heap keeps would count in the next phase (glibc; elsewhere they stay)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident(what: str = "VmRSS") -> int | None:
    """Resident bytes of this process now (VmRSS), or their peak since the last reset (VmHWM). Linux only."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith(f"{what}:")]
    return int(found[0].split()[1]) * 1024 if found else None


# ---- energy ----------------------------------------------------------------------------------------------------


def counter(devices: Sequence[torch.device], powercap: Path = POWERCAP) -> Counter | None:
    """The energy counter of devices: NVML for NVIDIA GPUs, RAPL for processors; None where neither can be read."""
    try:
        return Nvml(devices) if devices[0].type == "cuda" else Rapl(powercap)
    except Exception:  # no driver, no package, no permission, too old a device: each has an exception of its own
        return None


class Rapl:
    """Energy of all processor packages of this machine, with whatever else runs on it."""

    name = "rapl"

    def __init__(self, powercap: Path = POWERCAP):
        self.packages = [d for d in sorted(powercap.glob("intel-rapl:*")) if d.name.count(":") == 1]
        if not self.packages:
            raise FileNotFoundError(powercap)
        self.ranges = [int((d / "max_energy_range_uj").read_text()) for d in self.packages]
        self.last = self._read()
        self.total = 0

    def _read(self) -> list[int]:
        return [int((d / "energy_uj").read_text()) for d in self.packages]

    def joules(self) -> float:
        now = self._read()
        spans = zip(now, self.last, self.ranges, strict=True)
        self.total += sum(after - before if after >= before else after - before + most for after, before, most in spans)
        self.last = now
        return self.total / 1e6


class Nvml:
    """Energy of these NVIDIA GPUs since their driver was loaded."""

    name = "nvml"

    def __init__(self, devices: Sequence[torch.device]):
        import pynvml

        pynvml.nvmlInit()
        names = [f"GPU-{torch.cuda.get_device_properties(device).uuid}" for device in devices]
        self.handles = [pynvml.nvmlDeviceGetHandleByUUID(name) for name in names]
        self.read = pynvml.nvmlDeviceGetTotalEnergyConsumption
        self.joules()

    def joules(self) -> float:
        return sum(map(self.read, self.handles)) / 1e3
