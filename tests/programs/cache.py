"""Fill a state cache in small batches; started by the tests, and killed.

python tests/programs/cache.py TEACHER DATA CACHE
"""

import sys

from datasets import load_from_disk

from distilwhisper.caching import cache_states

if __name__ == "__main__":
    teacher, data, directory = sys.argv[1:]
    cache_states(teacher, None, load_from_disk(data), directory, batch_size=1)
