"""How many target tokens have logits at one time, where the config does not say: as many as a device has room for."""

import torch

# Float32 logits. With less room more of them are computed twice, forward and backward: on a CPU 128 MiB take 6 to 20 %
# more time in the head than 512 do, caches aside, which none of these fit into.
CPU_BYTES = 256 * 2**20
# Of a GPU's memory: 0.3 GiB of a card of 24, 1 GiB of a card of 80 and more. Losses that compare distributions hold
# several times as much.
GPU_SHARE, LEAST_BYTES, MOST_BYTES = 1 / 80, 64 * 2**20, 2**30


def logit_rows(vocabulary: int, gpu_bytes: float | None) -> int:
    """Target tokens whose logits, `vocabulary` numbers in float32 each, fill the room for them.

    Args:
        gpu_bytes: Memory of the GPU; None on a CPU.
    """
    room = CPU_BYTES if gpu_bytes is None else min(max(gpu_bytes * GPU_SHARE, LEAST_BYTES), MOST_BYTES)
    return max(1, int(room) // (4 * vocabulary))


def chunk_rows(chunk_size: int | None, vocabulary: int, device: torch.device, gpu_bytes: float | None = None) -> int:
    """`chunk_size`, or where it is None as many target tokens as a device has room for.

    Args:
        gpu_bytes: Memory of the GPU of a plan, in the place of the device's own.
    """
    return chunk_size or logit_rows(vocabulary, gpu_bytes or gpu_memory(device))


def gpu_memory(device: torch.device) -> float | None:
    """Bytes of a GPU, None for other devices."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
