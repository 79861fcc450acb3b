"""The letters in which byte-level vocabularies (GPT-2's, Whisper's) spell bytes. Knows bytes; never tokens."""


def _letters() -> dict[str, int]:
    """Printable bytes are themselves, the others 256 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES_OF_LETTERS = _letters()
