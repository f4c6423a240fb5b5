"""Generative retrieval: an encoder-decoder reads a query and writes the ids of items.

In: vectors of all items from an arm's document tower; graded groups. Out: semantic ids of the items (`item_ids`), a
query and its graded positives as tokens (`reading`, `examples`), and beam search among all ids as a retriever
(`searcher`). It stands on `crops_jax.suggestions`: quantisers, trie, beam search, batches.
"""
