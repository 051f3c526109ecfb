"""From files and the command line to a checked recipe.

schema      keys, types and defaults; what the host's classes take
compose     Hydra: the only place that knows it; where a key was set
checks      values, ranges and choices: `checked` makes a recipe of what was composed
main_files  what solo-learn main's own files bring and nothing reads
"""
