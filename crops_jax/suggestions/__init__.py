"""OneSug: query suggestions that a model writes, from the logs of what was suggested.

In: a checked log folder with its tables of suggestions; vectors of a text encoder; a BART. Out: pairs of prefixes and
queries that belong together, preferences between suggested queries with rewards (`mined_day`); what a held-out day
asks (`testset`), how well it is answered (`metrics`), and what stands today: completions (`completion`), and candidates
that a small model ranks (`cascade`); records that align a text encoder (`alignment`); semantic ids of queries
(`semantic_index`) and the queries related to a prefix (`related`); losses that learn from preferences (`rwr`); texts
that a BART writes (`beam`). Of the log half, which loads no jax, are `config`, `day`, `co_occurrence`, `levels`,
`preferences`, `searched`, `mined_day`, `taken`, `testset`, `suggester`, `metrics`, `completion`, `alignment`,
`prefix_queries`, `nearest`, `recall`, `ranking_examples` and `cascade`.
"""
