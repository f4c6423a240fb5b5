"""The parts of a run: one update, the optimiser, checkpoints, validation, metrics, the watchdog.

In: batches and a state. Out: the next state, sealed steps, metric lines. It knows no `Experiment`; `runs` does.
"""
