"""The commands of ``distilwhisper``, one a module: options as dataclasses, and ``run``, which returns what to print.

What takes seconds to import is imported in ``run``, so that ``--help`` is there sooner.
"""
