"""The commands of ``distilwhisper``, one a module: options as dataclasses, and ``run``, which returns what to print."""
