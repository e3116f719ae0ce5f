"""The command `holistic-clip`: a module per verb, each a dataclass of options with what the verb does.

Modules here import nothing heavy at their top, so that help appears at once. What a verb needs is imported where it
runs.
"""
