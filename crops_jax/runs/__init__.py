"""All that needs a whole Experiment: tasks, a run's folder and inputs, its TPU plan, the model that it left.

In: an Experiment. Out: what the verbs need to train, encode, export and plan.
"""
