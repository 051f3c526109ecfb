"""Folders of runs and evaluations: what lies in them is named, written and read here alone.

files         the names, and files that are there whole or not at all
identity      what makes a run another run, and the name of its folder
sources       a digest of the code that a result is made by
folder        one folder from its beginning to its result, for one process at a time
checkpoints   the state after each epoch; files that someone else has written
collect       finished runs as tables, and what is wrong with the others
"""
