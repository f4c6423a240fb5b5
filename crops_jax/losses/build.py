"""The one place that turns a loss config into a function."""

from __future__ import annotations

from functools import partial

from crops_jax.losses.common import Loss
from crops_jax.losses.config import (
    HInfoNCEConfig,
    InfoNCEBinaryConfig,
    InfoNCEPerPositiveConfig,
    LossConfig,
    NCEConfig,
    PairwiseConfig,
    SoftmaxCEConfig,
)
from crops_jax.losses.h_infonce import h_infonce, h_infonce_nxn
from crops_jax.losses.infonce import infonce_binary, infonce_per_positive
from crops_jax.losses.nce import nce
from crops_jax.losses.pairwise import pairwise
from crops_jax.losses.softmax_ce import softmax_ce


def build_loss(config: LossConfig) -> Loss:
    """The loss of a config: `(e_query[B, D], e_doc[N, D], log_tau, batch) -> (scalar, LossAux)`.

    Raises:
      TypeError: the config belongs to no loss.
    """
    match config:
        case HInfoNCEConfig(form="nxn"):
            return partial(h_infonce_nxn, config=config)
        case HInfoNCEConfig():
            return partial(h_infonce, config=config)
        case InfoNCEBinaryConfig():
            return partial(infonce_binary, config=config)
        case InfoNCEPerPositiveConfig():
            return partial(infonce_per_positive, config=config)
        case SoftmaxCEConfig():
            return partial(softmax_ce, config=config)
        case PairwiseConfig():
            return partial(pairwise, config=config)
        case NCEConfig():
            return partial(nce, config=config)
        case _:
            raise TypeError(f"no loss for {config!r}")
