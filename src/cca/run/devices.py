"""What devices can do: vendors' figures, or this machine by a short probe; and what share of it a pass reaches."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cca.errors import InputError
from cca.model.placement import GIB

HOST_GIB = 64.0
"""Main memory that is free beside each device of the table: an assumption, which `--host-gib` replaces."""
_PROBED = 0.4
"""Seconds that a probe takes at least."""
_WEIGHTS = 24
"""Matrices of 1,024 x 4,096 that a probe multiplies with: more than the caches of a processor hold."""


@dataclass(frozen=True)
class Shares:
    """What passes of a model reach of a device's peaks, and what each call of a layer costs besides.

    read, write, gradient, attention: of the peak of products. bandwidth: of the memory's. forward, both: seconds of
    Python and kernels that a layer takes in a pass, without and with a backward pass. read_token, write_token: seconds
    that a layer takes besides for each token, for all that is no product.
    """

    read: float
    write: float
    gradient: float
    attention: float
    bandwidth: float
    forward: float
    both: float
    read_token: float = 0
    write_token: float = 0


ON_A_GPU = Shares(0.35, 0.35, 0.3, 0.2, 0.5, 0.8e-3, 4e-3)
"""One H200, the shape of a 3B model at 16 bits, with torch alone (docs/results/speed.md, On a GPU): reading 32 x 1,200
tokens 0.9 s, a step of 64 rows 30 ms, of gates 131 to 197 ms, a gradient of 8 x 1,200 tokens 1.1 s. That of attention
was not measured."""
ON_A_CPU = Shares(1.0, 0.85, 0.62, 0.3, 1.0, 0.5e-3, 1.2e-3, 13e-6, 25e-6)
"""Of what the probe reaches, on two cores: steps, reading and gradients of a 0.5B and a 135M model at 16 bits
(docs/results/speed.md, A real pretrained model), and the calls of the bundled one's steps."""


@dataclass(frozen=True)
class Device:
    """One device. flops_16, flops_32: dense products a second, with 16-bit and with float32 numbers (no TF32).

    bandwidth: bytes a second of its memory. memory: bytes. link, host: bytes a second to another device, and to main
    memory, one way. shares: what is reached of that.
    """

    name: str
    flops_16: float
    flops_32: float
    bandwidth: float
    memory: float
    link: float
    host: float
    shares: Shares = ON_A_GPU

    @property
    def is_cpu(self) -> bool:
        return self.shares is ON_A_CPU

    def flops(self, size: int) -> float:
        """Dense products a second with numbers of `size` bytes."""
        return self.flops_32 if size == 4 else self.flops_16


@dataclass(frozen=True)
class Devices:
    """`count` of one device, and the bytes of main memory that are free beside all of them; None: nobody says."""

    device: Device
    count: int = 1
    host: float | None = None

    def __str__(self) -> str:
        return f"{self.count} x {self.device.name}" if self.count > 1 else self.device.name


def _gpu(name: str, tera_16: float, tera_32: float, giga: float, gib: float, link: float, host: float) -> Device:
    """Teraflops, GB/s, GiB, GB/s."""
    return Device(name, tera_16 * 1e12, tera_32 * 1e12, giga * 1e9, gib * GIB, link * 1e9, host * 1e9)


KNOWN = (
    _gpu("B200", 2250, 75, 7700, 179, 900, 60),
    _gpu("H200", 989, 67, 4800, 140.4, 450, 60),
    _gpu("H100", 989, 67, 3350, 79.6, 450, 60),
    _gpu("A100-80GB", 312, 19.5, 2039, 80, 300, 30),
    _gpu("A100-40GB", 312, 19.5, 1555, 40, 300, 30),
    _gpu("L40S", 362, 91.6, 864, 45, 30, 30),
    _gpu("RTX4090", 165, 82.6, 1008, 24, 30, 30),
)
"""NVIDIA's data sheets (H100, H200, A100 and B200: SXM), dense, rounded; memory as nvidia-smi tells it."""


def devices_of(text: str, size: int = 4, host_gib: float | None = None) -> Devices:
    """``8xH100`` or ``H100``; ``cpu``: this machine, measured with numbers of `size` bytes.

    Raises:
        InputError: nobody knows such a device, or there are none of it.
    """
    found = re.fullmatch(r"(?:(\d+)\s*[x*]\s*)?(.+)", text.strip(), re.IGNORECASE)
    count, name = (int(found[1] or 1), found[2]) if found else (0, text)
    if name.lower() == "cpu" and count == 1:
        return probe(size)
    asked = _letters(name).removeprefix("nvidia")
    named = [known for known in KNOWN if asked in (_letters(known.name), _letters(known.name.partition("-")[0]))]
    if not named or count < 1:
        some = ", ".join(known.name for known in KNOWN)
        raise InputError(f"--devices {text}: name one of {some} or cpu, with how many before it, such as 8xH100")
    return Devices(named[0], count, (HOST_GIB * count if host_gib is None else host_gib) * GIB)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def given(flops: float, bandwidth: float, gib: float, host_gib: float | None = None) -> Devices:
    """One device of so many products and bytes a second, that somebody measured."""
    other = _gpu("device as given", flops / 1e12, flops / 1e12, bandwidth / 1e9, gib, 30, 30)
    return Devices(other, 1, (HOST_GIB if host_gib is None else host_gib) * GIB)


def probe(size: int = 4) -> Devices:
    """The processors of this machine, with the memory that is free, measured with numbers of `size` bytes.

    A product of 512 rows tells the peak, one of 8 rows the bandwidth of weights. Beside other work it is too low.
    """
    import torch

    from cca.model.memory import host_free_bytes

    dtype = torch.float32 if size == 4 else torch.bfloat16
    weights = [torch.ones(4096, 1024, dtype=dtype) for _ in range(_WEIGHTS)]
    numbers = weights[0].numel() * _WEIGHTS
    few, many = (_least(torch.ones(rows, 1024, dtype=dtype), weights) for rows in (8, 512))
    flops, bandwidth = 2 * 512 * numbers / many, numbers * size / few
    memory = host_free_bytes()
    device = Device("cpu", flops, flops, bandwidth, float("inf") if memory is None else memory, bandwidth, bandwidth)
    return Devices(replace(device, shares=ON_A_CPU))


def _least(rows: Any, weights: Sequence[Any]) -> float:
    """Seconds of the products of `rows` with all `weights`, at best."""
    import torch

    began, least, number = time.perf_counter(), float("inf"), 0
    with torch.no_grad():
        while number < 2 or time.perf_counter() - began < _PROBED / 2:
            at = time.perf_counter()
            for weight in weights:
                torch.nn.functional.linear(rows, weight)
            least, number = min(least, time.perf_counter() - at), number + 1
    return least
