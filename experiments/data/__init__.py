"""Families of tasks: each module makes the problems that it names in `PROBLEMS`.

It is the lowest room: files, progress and the check of settings, which all others use, lie here, too.
"""
