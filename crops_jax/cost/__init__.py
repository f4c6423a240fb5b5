"""What a program costs: analytic FLOPs, the compiler's plan, and what a chip can do.

In: model configs, compiled text, device names. Out: counts of FLOPs, bytes and collectives.
"""
