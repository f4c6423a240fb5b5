"""OneSug: query suggestions that a model writes, from the logs of what was suggested.

In: a checked log folder with its tables of suggestions; vectors of a text encoder; a BART. Out: pairs of prefixes and
queries that belong together, preferences between suggested queries with rewards (`mined_day`); semantic ids of queries
and the queries related to a prefix (`semantic_index`); losses that learn from preferences (`rwr`); texts that a BART
writes (`beam`). `config`, `day`, `co_occurrence`, `levels`, `preferences` and `mined_day` are of the log half and load
no jax.
"""
