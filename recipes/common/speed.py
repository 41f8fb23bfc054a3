"""How fast a decoder trains: tokens per second, and MFU, the share of the device's peak that the model's FLOPs take."""

from __future__ import annotations

import statistics
import time

import torch

# Dense bf16, from the data sheets. For any other device or precision, a matrix product is timed.
PEAK_TFLOPS = {"H100": 989, "H200": 989, "B200": 2250, "A100": 312, "L40S": 362, "L4": 121}


def flops_per_token(model, config, length: int) -> float:
    """FLOPs of forward and backward for a token, as in PaLM's appendix B.

    That is 6 for each parameter in a matrix product, and 12 x layers x width x row length for attention.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if not config.tie_word_embeddings:
        parameters -= config.vocab_size * config.hidden_size  # an embedding is looked up, not multiplied
    return 6 * parameters + 12 * config.num_hidden_layers * config.hidden_size * length


def peak_flops(device, bf16: bool) -> tuple[float, str]:
    """Peak FLOP/s of one device, and the source of the number."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    for known, tflops in PEAK_TFLOPS.items():
        if bf16 and known in name.replace("-", " ").split():
            return tflops * 1e12, f"{known}'s data sheet"
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        (a @ a)[0, 0].item()
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times), "a timed matrix product"


class Speedometer:
    """Tokens per second over stretches of the training.

    Args:
        flops (float): FLOPs of a token.
        device (torch.device): device of this process.
        bf16 (bool): whether the arithmetic is in bfloat16.
        processes (int): number of processes, each with such a device.
    """

    def __init__(self, flops: float, device, bf16: bool, processes: int) -> None:
        peak, self.source = peak_flops(device, bf16)
        self._share_of_peak = flops / (peak * processes)
        self._speeds: list[float] = []
        self.restart()

    def restart(self) -> None:
        """Begin a stretch; what was done since the last reading, such as a validation, does not count."""
        self._since = time.perf_counter()

    def read(self, tokens: int) -> str:
        """End a stretch with this many tokens. Returns its speed as text."""
        self._speeds.append(tokens / (time.perf_counter() - self._since))
        return f"{self._speeds[-1]:.3g} tokens/s, MFU {self._speeds[-1] * self._share_of_peak:.1%}"

    def summary(self) -> dict[str, float]:
        """Median speed and MFU. It is a median because the first steps may compile."""
        speed = statistics.median(self._speeds) if self._speeds else 0.0
        return {"tokens_per_second": speed, "mfu": speed * self._share_of_peak}
