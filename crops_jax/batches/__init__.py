"""From record groups to batches: a global order, packing, collation, read-ahead.

In: record shards and a tokeniser or hasher. Out: `crops_jax.batch.Batch`, static in shape, with an exact position.
`stream` makes them and `prefetch` makes them ahead; `order`, `packing` and `collate` are what they are made with.
"""
