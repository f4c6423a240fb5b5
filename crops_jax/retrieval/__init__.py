"""Search and its metrics: encoding a corpus, exact and ScaNN search, BM25, recall and NDCG.

In: a trained tower, items, test sets. Out: vectors, indexes, ranked lists, metrics by query.
"""
