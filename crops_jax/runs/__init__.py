"""What knows an Experiment: a run's folder and inputs, its abstract state, its TPU plan, the model it left behind.

In: an Experiment. Out: what the verbs train, encode, export and plan with.
"""
