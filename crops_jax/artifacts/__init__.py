"""What verbs hand to each other: folders that are whole or not there, and the manifest that says so.

In: files, and a manifest of what they were made from. Out: sealed folders. `folders` writes them, `manifest` reads and
checks them.
"""
