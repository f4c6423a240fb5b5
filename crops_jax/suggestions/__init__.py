"""OneSug: query suggestions that a model writes, from the logs of what was suggested.

In: a checked log folder with its tables of suggestions; vectors of a text encoder; a BART. Out: pairs of prefixes and
queries that belong together, preferences between suggested queries with rewards (`mined_day`); what a held-out day
asks (`testset`), how well it is answered (`metrics`), and the completions that stand today (`completion`); semantic
ids of queries and the queries related to a prefix (`semantic_index`); losses that learn from preferences (`rwr`); texts
that a BART writes (`beam`). `config`, `day`, `co_occurrence`, `levels`, `preferences`, `searched`, `mined_day`,
`testset`, `suggester`, `metrics` and `completion` are of the log half and load no jax.
"""
