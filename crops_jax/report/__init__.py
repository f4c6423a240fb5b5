"""Results for people: tables in the terminal and as Markdown.

In: results of `evaluate`. Out: report.md.
"""
