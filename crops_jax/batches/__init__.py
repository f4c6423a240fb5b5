"""From record groups to batches: a global order, packing, collation, read-ahead.

In: record shards and a tokeniser or hasher. Out: `crops_jax.batch.Batch`, static in shape, with an exact position.
`stream` is the way in; `order`, `collate`, `packing` and `prefetch` are its parts.
"""
