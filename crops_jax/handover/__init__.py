"""What the serving team takes: towers that embedding servers load, with golden vectors that prove them.

In: a trained model and its tokeniser. Out: a sentence-transformers folder per tower, replayed before it is given away.
"""
