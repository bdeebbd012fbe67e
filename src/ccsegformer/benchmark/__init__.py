"""Times and memory against transformers' SegFormer and the textbook formula, checked before they are told.

Every contender lives in a process of its own; they run in turn, so that a machine's moods fall on all alike.
"""
