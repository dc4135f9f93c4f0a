"""Files that are whole whatever kills the process that writes them: tables and checkpoints."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
from contextlib import contextmanager
from pathlib import Path

from harness.errors import Damaged

# then its version, a line with the SHA-256, and torch.save's bytes
MAGIC = b"train-bn-only checkpoint "
VERSION = 2


@contextmanager
def replacing(path: Path):
    """A binary stream whose content takes the place of `path` once it is complete, and not
    before."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(new, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def write_table(path: Path, columns: list[str], rows) -> None:
    """A CSV, gzipped where its name ends so, floats with six significant digits. The same content
    gives the same bytes."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in row])
    content = text.getvalue().encode()
    with replacing(path) as stream:
        stream.write(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def write_checkpoint(path: Path, content: dict) -> None:
    """What torch.save makes of `content`, behind its SHA-256: PyTorch does not notice a flipped
    bit."""
    import torch

    payload = io.BytesIO()
    torch.save(content, payload)
    digest = hashlib.sha256(payload.getbuffer()).hexdigest().encode()
    with replacing(path) as stream:
        stream.write(MAGIC + b"%d\n" % VERSION + digest + b"\n" + payload.getvalue())


def read_checkpoint(path: Path) -> dict:
    """The content of a checkpoint, and as `version` that of its form. Raises Damaged where one bit
    is not as it was written; runs no code that the file may hold."""
    stored = path.read_bytes()
    head, _, rest = stored.partition(b"\n")
    version = head.removeprefix(MAGIC)
    if not head.startswith(MAGIC) or version not in (b"1", b"2"):
        raise Damaged("it is no checkpoint of this version")
    digest, _, payload = rest.partition(b"\n")
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise Damaged("its checksum does not fit its content")
    import torch

    try:
        # on a GPU or not, whatever trained it: its optimizer takes its moments to where it is
        content = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler's kinds are many
        raise Damaged(f"PyTorch refuses it ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise Damaged("it does not hold what a run writes")
    return content | {"version": int(version)}
