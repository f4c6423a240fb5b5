"""The relational engine that runs the miners' Ibis expressions; one file for each engine.

In: streams of rows and Ibis expressions. Out: rows, and sorted Parquet files that are the same at every run.
`duckdb` is embedded, spills to disk and is locked to the folders it is given.
"""
