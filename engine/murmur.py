"""The hash by which Kafka's clients choose the partition of a key; pure."""

from __future__ import annotations


def murmur2(data: bytes) -> int:
    """The 32-bit hash by which Kafka's clients choose the partition of a key (MurmurHash 2 with Kafka's own seed)."""
    mask, factor = 0xFFFFFFFF, 0x5BD1E995
    state = 0x9747B28C ^ len(data)
    whole = len(data) & ~3
    for start in range(0, whole, 4):
        word = int.from_bytes(data[start : start + 4], "little") * factor & mask
        word = (word ^ word >> 24) * factor & mask
        state = state * factor & mask ^ word
    if rest := data[whole:]:
        state = (state ^ int.from_bytes(rest, "little")) * factor & mask
    state = (state ^ state >> 13) * factor & mask
    return state ^ state >> 15
