"""A bundle behind HTTP: search, embedding, and the explorer that shows what is found and why.

In: folders that `python -m crops_jax.bundle` wrote. Out: answers. It reads nothing else and writes nothing.
"""
