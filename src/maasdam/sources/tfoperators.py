"""Which TensorFlow operators reach beyond tensors: files, Python, processes, the network.

Knows operator names (all 1,900 of TensorFlow 2.21 were gone through). Refuses to know graphs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from maasdam.sources.tfgraph import TfNode

Reach = Literal["files", "python", "network", "hidden"]

WHAT: dict[Reach, str] = {
    "files": "reads or writes files",
    "python": "calls Python",
    "network": "talks to other processes or machines",
    "hidden": "brings a further graph within a text, where its operators can't be listed",
}
LIFTABLE: frozenset[Reach] = frozenset({"files"})
"""What --trust allows: operators that call Python have nothing to call here, and a served model works alone."""

SAVING = frozenset({"SaveV2", "ShardedFilename", "ShardedFilespec", "MergeV2Checkpoints", "Save", "SaveSlices"})
"""What an ordinary saver function uses to save."""
RESTORING = frozenset({"RestoreV2", "Restore", "RestoreSlice", "ShardedFilename"})
"""What an ordinary saver function uses to restore; loaders run it, so nothing in it may write."""

_FILES = re.compile(
    r"""ReadFile|WriteFile|MatchingFiles|(Experimental)?MatchingFilesDataset|Save|SaveV2|SaveSlices|Restore|RestoreV2|RestoreSlice
      | MergeV2Checkpoints|ShardedFilename|ShardedFilespec|LoadAndRemapMatrix|GenerateVocabRemapping
      | DTensorRestoreV2|DistributedSave|CheckpointExists|RecordInput|ImportEvent|DumpTensor|Dump\w*
      | (WholeFile|TextLine|FixedLengthRecord|TFRecord|Identity|LMDB)Reader(V2)?|Reader(Read|ReadUpTo)(V2)?
      | (Experimental)?(TextLine|TFRecord|FixedLengthRecord|CSV|Sql|LMDB)Dataset(V2)?|Cache\w*Dataset(V2)?
      | (Experimental)?DatasetToTFRecord|(Save|Load|Snapshot|SnapshotChunk|ListSnapshotChunks)Dataset(V2)?|Snapshot\w*Reader
      | InitializeTableFromTextFile(V2)?|CreateSummary(File|Db)Writer|Write\w*Summary|FlushSummaryWriter|SummaryWriter
      | Debug(Identity|NanCount|NumericSummary)(V[23])?|CalibrationStatisticsSaver|FileSystem\w*|\w*File(name)?System\w*
      | Sqlite\w*|Bigtable\w*|\w*Fingerprint(File|Path)\w*
    """,
    re.VERBOSE,
)
_PYTHON = re.compile(r"PyFunc|PyFuncStateless|EagerPyFunc|NumpyFunction|\w*PyFunc\w*|GeneratorDataset")
_NETWORK = re.compile(
    r"""Rpc\w+|\w*DataService\w*|RegisterDataset(V2)?|RemoteCall|RemoteFusedGraphExecute|Collective\w+|Nccl\w+|_Nccl\w+
      | Kafka\w*|Grpc\w*|Http\w*|BigQuery\w*|PubSub\w*|_?Send|_?Recv|_HostSend|_HostRecv|SendTPU\w*|RecvTPU\w*|\w*Curl\w*
    """,
    re.VERBOSE,
)


def by_reach(nodes: Iterable[TfNode]) -> dict[Reach, list[str]]:
    """The operators among `nodes` that reach beyond tensors, sorted, by what they reach."""
    out: dict[Reach, set[str]] = {}
    for node in nodes:
        reach = reach_of(node)
        if reach is not None:
            out.setdefault(reach, set()).add(node.operator)
    return {reach: sorted(names) for reach, names in out.items()}


def reach_of(node: TfNode) -> Reach | None:
    """What one operation reaches beyond tensors; None is nothing."""
    operator = node.operator
    if _PYTHON.fullmatch(operator):
        return "python"
    if _FILES.fullmatch(operator):
        return "files"
    if _NETWORK.fullmatch(operator):
        return "network"
    if operator in ("DatasetFromGraph", "TRTEngineOp"):
        return "hidden"
    if operator in ("DecodeProtoV2", "EncodeProto"):
        source = node.text_attribute("descriptor_source")
        return None if source in ("", "local://") or source.startswith("bytes://") else "files"
    if operator == "PrintV2" and node.text_attribute("output_stream").startswith("file:"):
        return "files"
    return None
