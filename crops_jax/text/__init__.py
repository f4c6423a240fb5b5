"""Text as model input: tokenisers that keep the length of every row, and hashed ids for the sparse model.

In: queries and the text fields of documents. Out: numpy rows of token ids or of table rows. No jax here.
"""
