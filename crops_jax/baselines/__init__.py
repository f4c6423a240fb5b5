"""Training recipes other than CroPS: where their negatives come from.

In: the corpus, the train day's clicks, a model or BM25. Out: candidates, which labels and records take like any others.
A recipe's loss lies in `losses`; `runs` turns it into a task of the one trainer.
"""
