"""The log contract: which tables a platform hands over, and checks that they keep to it.

In: a log folder (Parquet). Out: the same folder, checked; its tables with the contract's columns and types.
`schema` says what the columns mean, `checks` lists every problem at once, `folder` opens a log folder. `tables` reads
and writes one table: `parts` finds its files, `casts` and `times` convert its values, and `declared` says what was
declared when the folder was sealed. `id_map` keeps the ids that are hashed. `foreign` and `importing` are
what the recipes in `data/` share: tables of other people, and the way from these to a log folder.
"""
