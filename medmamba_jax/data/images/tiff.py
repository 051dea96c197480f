"""TIFF files with quick access to every frame."""

import io
import struct
import threading

from PIL.TiffImagePlugin import ImageFileDirectory_v2

from medmamba_jax.data.images.damage import NoSuchFrameError
from medmamba_jax.data.images.signatures import is_large_tiff


class TiffFile:
    """A TIFF that remembers the place of each frame's directory. Threads may share it.

    Each directory holds the place of the next one, so without this memory every access to frame n
    would take n steps. OSError, SyntaxError and struct.error mean here that the file is damaged.

    Args:
        content: the bytes of the file, which begins as TIFF files do.
    """

    def __init__(self, content: bytes):
        self.content = content
        large, order = is_large_tiff(content), ">" if content.startswith(b"MM") else "<"
        # `struct` formats of a directory's number of tags, and of a place in the file.
        self._number, self._place = (f"{order}{kind}" for kind in ("QQ" if large else "HI"))
        self._tag_size = 20 if large else 12  # bytes
        self._link = 8 if large else 4  # where the header holds the place of the first directory
        self._places: list[int] = []
        self._seen: set[int] = set()
        self._lock = threading.Lock()

    def count_frames(self) -> int:
        """Returns the number of frames."""
        with self._lock:
            while self._step():
                pass
        return len(self._places)

    def tags(self, frame: int) -> ImageFileDirectory_v2:
        """Returns the tags of a frame: tag number -> value, or a tuple if it can be several.

        Raises:
            NoSuchFrameError: there are fewer frames.
        """
        directory = ImageFileDirectory_v2(self._header(frame))
        file = io.BytesIO(self.content)
        file.seek(directory.next)
        directory.load(file)
        return directory

    def beginning_with(self, frame: int) -> io.BytesIO:
        """Returns the file as if this frame were the first one.

        Raises:
            NoSuchFrameError: there are fewer frames.
        """
        return _Reheaded(self.content, self._header(frame))

    def _header(self, frame: int) -> bytes:
        with self._lock:
            while len(self._places) <= frame:
                if not self._step():
                    raise NoSuchFrameError(frame, len(self._places))
            place = struct.pack(self._place, self._places[frame])
        return self.content[: self._link] + place

    def _step(self) -> bool:
        """Finds the place of the next directory; returns False after the last one."""
        link = self._link
        if self._places:
            last = self._places[-1]
            (tags,) = struct.unpack_from(self._number, self.content, last)
            link = last + struct.calcsize(self._number) + tags * self._tag_size
        (place,) = struct.unpack_from(self._place, self.content, link)
        if place in self._seen or (not place and self._places):
            return False
        if not 0 < place < len(self.content):
            raise OSError(f"frame {len(self._places)} is not in it")
        self._places.append(place)
        self._seen.add(place)
        return True


class _Reheaded(io.BytesIO):
    """A file with another header in front; it does not copy the rest of the file.

    `getvalue` returns the file with its original header. Pillow passes that to libtiff, together
    with the place of the directory.
    """

    def __init__(self, content: bytes, header: bytes):
        super().__init__(content)
        self._header = header

    def read(self, size: int | None = -1, /) -> bytes:
        start = self.tell()
        found = super().read(size)
        header = self._header[start:]
        return (header + found[len(header) :])[: len(found)] if header else found
