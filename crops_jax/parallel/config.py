"""The sizes of the device mesh."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; their product must be the number of devices. One size may be -1: whatever is left."""

    replica: int = 1
    """Copies of the parameters, for instance one per TPU slice; the batch is split over them."""
    data: int = -1
    """Devices the batch is split over; with FSDP the parameters are split over them too."""
    tensor: int = 1
    """Devices that share one layer's heads and ffn columns; at most the number of KV heads."""
