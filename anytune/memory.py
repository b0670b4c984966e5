"""How much memory this process holds, and how much the machine has left."""

from __future__ import annotations

import contextlib
import os
import re
import sys

from anytune.errors import UserError

MIB = 1 << 20
_UNITS = {
    "": 1,
    "k": 1000,
    "kb": 1000,
    "m": 1000**2,
    "mb": 1000**2,
    "g": 1000**3,
    "gb": 1000**3,
    "ki": 1 << 10,
    "kib": 1 << 10,
    "mi": 1 << 20,
    "mib": 1 << 20,
    "gi": 1 << 30,
    "gib": 1 << 30,
}


def parse_bytes(text: str) -> int:
    """'300MiB', '2GiB', '1.5GB', '500000000' -> bytes. Raises UserError."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].lower() not in _UNITS:
        raise UserError(f"{text!r} is not an amount of memory: give --memory as 300MiB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def process_bytes() -> int:
    """Resident bytes of this process now (0 if the system does not tell)."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_bytes()


def peak_bytes() -> int:
    """The most resident bytes this process ever had (0 if the system does not tell)."""
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) * 1024
    with contextlib.suppress(ImportError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024
    return 0


def available_bytes() -> int:
    """Bytes that a new allocation can have without swapping; 8 GiB where the system does not tell."""
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) * 1024
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 8 << 30


def trim() -> None:
    """Hand freed memory back to the system where the C library keeps it (glibc)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).malloc_trim(0)


_DONTNEED = 4  # MADV_DONTNEED: unmap these pages from this process; code is read again from its file when called


def page_out_code() -> None:
    """Let go of library code that start-up needed and the work does not (a compiler's, above all).

    Nothing is lost: only executable pages of files go that nobody ever wrote to, and they are read again if they are
    called. Does nothing where the system cannot.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError, ValueError):
        import ctypes

        advise = ctypes.CDLL(None).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for low, high in _clean_code():
            advise(low, high - low, _DONTNEED)


def _clean_code() -> list[tuple[int, int]]:
    """Address ranges of private executable file mappings without a page of their own (see proc_pid_smaps(5))."""
    found: list[tuple[int, int]] = []
    current = None
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line[0] in "0123456789abcdef":  # its range of addresses; what follows about it begins with a capital
                words = line.split()
                code = len(words) == 6 and words[1] == "r-xp" and words[5].startswith("/")
                current = tuple(int(z, 16) for z in words[0].split("-")) if code else None
            elif current and line.split() == ["Anonymous:", "0", "kB"]:
                found.append(current)
    return found
