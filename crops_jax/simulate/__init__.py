"""Simulated platforms: a world, users who search and watch, and the logs of what they did.

In: the config of a world (synthetic, or a judged collection). Out: the log contract's tables and the truth beside them.
Everything here is simulated behaviour; in a judged world the texts and grades are real. `simulator` runs the days.
"""
