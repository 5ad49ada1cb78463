"""Numbers and byte strings one behind the other, and a reader that trusts none of them."""

from __future__ import annotations

from onnx_compress.errors import InputError


class Writer:
    """Collects fields."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def number(self, value: int) -> None:
        """A number from 0 on, seven bits a byte."""
        while value >= 0x80:
            self.buffer.append(value & 0x7F | 0x80)
            value >>= 7
        self.buffer.append(value)

    def raw(self, data: bytes | memoryview) -> None:
        """Bytes whose count the reader knows."""
        self.buffer += data

    def blob(self, data: bytes | memoryview) -> None:
        """Bytes with their count in front."""
        self.number(len(data))
        self.buffer += data


class Reader:
    """Gives the fields back. Raises InputError where there are fewer bytes than asked for."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = memoryview(data)
        self.at = 0

    def number(self, most: int = 1 << 62) -> int:
        """The next number. Raises InputError where it is over `most`."""
        value = shift = 0
        while self.at < len(self.data) and shift < 70:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value > most:
                    raise damaged("a number is out of range")
                return value
            shift += 7
        raise damaged("it breaks off within a number")

    def raw(self, length: int) -> memoryview:
        """The next `length` bytes, not copied."""
        if length > len(self.data) - self.at:
            raise damaged("it has fewer bytes than it says")
        self.at += length
        return self.data[self.at - length : self.at]

    def blob(self) -> memoryview:
        """The next bytes with a count in front."""
        return self.raw(self.number())

    def end(self) -> None:
        """Raises InputError where something is left."""
        if self.at != len(self.data):
            raise damaged("it has more bytes than it says")


def damaged(what: str) -> InputError:
    """The error of an archive that is not what `pack` wrote."""
    return InputError(f"the archive is damaged: {what}; pack the model again")
