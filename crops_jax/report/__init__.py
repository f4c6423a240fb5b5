"""Results for people: tables in the terminal and as Markdown, and pages that stand alone.

In: results of `evaluate` and `audit`, coverage of shards. Out: report.md, audit.md and audit.svg, coverage.html.
"""
