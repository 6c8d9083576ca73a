"""Students for other runtimes: one module a format."""
