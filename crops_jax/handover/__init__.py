"""What the serving team gets: towers that embedding servers load, with golden vectors to check them with.

In: a trained model and its tokeniser. Out: a sentence-transformers folder per tower, read back and compared.
"""
