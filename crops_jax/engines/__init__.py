"""The relational engine that runs the miners' Ibis expressions; one file for each engine.

In: streams of rows and Ibis expressions. Out: counts, and sorted Parquet files that are the same at every run and from
every engine. `engine` is the port. `duckdb` is embedded, spills to disk and is locked to the folders that it is given;
`spark` reads and writes on a cluster. `files` knows what is written. `table_rows` looks up rows of Arrow tables in
memory.
"""
