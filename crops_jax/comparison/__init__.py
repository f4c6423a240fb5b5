"""Methods side by side: what the open benchmark trains, how sure its figures are, and the page that shows them.

In: one world's experiment and a list of methods, then the results of every arm. Out: the arms' experiments; figures
with intervals; JSON, Markdown and one HTML page. `crops_jax.bench` runs what lies between.
Opening this room loads neither jax nor matplotlib.
"""
