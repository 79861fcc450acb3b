"""Compile src/maasdam/api/oip.proto to the descriptor beside it, from which the service makes its messages.

python tools/proto.py            write it
python tools/proto.py --check    exit 1 where it is out of date
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

FOLDER = Path(__file__).resolve().parent.parent / "src/maasdam/api"
WRITTEN = FOLDER / "oip.binpb"


def compiled() -> bytes:
    """The file's descriptor, serialised, without comments."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        status = protoc.main(["protoc", f"--proto_path={FOLDER}", f"--descriptor_set_out={out}", "oip.proto"])
        if status:
            raise SystemExit(status)
        (file,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    return file.SerializeToString(deterministic=True)


if __name__ == "__main__":
    if "--check" not in sys.argv:
        WRITTEN.write_bytes(compiled())
    elif WRITTEN.read_bytes() != compiled():
        sys.exit(f"{WRITTEN.name} is out of date; run: python tools/proto.py")
