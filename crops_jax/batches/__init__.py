"""From record groups to batches: a global order, packing, collation, read-ahead.

In: record shards and a tokeniser or hasher. Out: `crops_jax.batch.Batch`, static in shape, with an exact position.
`stream` makes the batches and `prefetch` makes them ahead of time, with the help of `order`, `packing` and `collate`.
"""
