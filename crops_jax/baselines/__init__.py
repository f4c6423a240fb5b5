"""Training recipes other than CroPS: where their negatives come from.

In: the corpus, the train day's clicks, a model or BM25. Out: groups, which become records like
any others. A recipe is a `NegativesConfig` and a loss; `runs.mined_negatives` turns it into a task of the one trainer.
"""
