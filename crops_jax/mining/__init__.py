"""The data engine: from one day's logs to candidates of seven sources, and the test day's CT, QR and unexposed sets.

In: a checked log folder, theta, a language model's endpoint. Out: candidates.parquet, knowledge.parquet, test sets.
`train_day` and `testsets` are the two ways in. Opening this room loads neither Ibis nor DuckDB nor openai nor jax.
"""
