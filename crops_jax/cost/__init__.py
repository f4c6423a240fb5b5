"""What a program costs: analytic FLOPs, what the compiler planned, what a chip can do.

In: model configs, compiled text, device names. Out: counts of FLOPs, bytes and collectives.
"""
