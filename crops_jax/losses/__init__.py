"""Objectives over graded groups and in-batch documents (paper Eq. 3 and its baselines).

In: vectors of a batch, log tau, labels and keys. Out: a scalar and figures about it for the metrics (`LossAux`).
`config` holds the choices and loads no jax; `build` turns one into a function.
"""
