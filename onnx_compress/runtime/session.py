"""Runs a model with onnxruntime."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnx_compress.errors import InputError, LimitError
from onnx_compress.model.document import write_aligned
from onnx_compress.model.edges import edges

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model

    Array = NDArray[Any]

INLINE = 64 * 2**20  # bytes of weights a session gets inline; more come from a mapped scratch file


@dataclass(frozen=True)
class InputSpec:
    """A graph input that must be fed: `shape` holds ints, names of symbolic sizes, or None; `dtype` is a numpy type."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


class Session:
    """`model` loaded by onnxruntime on the CPU.

    threads: intra-op threads; optimize: all of onnxruntime's graph optimisations, or none of them; layout: also
    those that lay weights and activations out in blocks of channels, which all outputs must leave again;
    exact: a product of float activations and a dequantized weight is computed in float, as the graph says: onnxruntime
    rounds the activations to 8 bits there, in blocks of 32 (since 1.32 those too that come of 16-bit codes), which no other
    runtime does;
    outputs: names of tensors to return beside the graph's outputs, or, with `trimmed`, in their place: what only the
    graph's outputs need is then not computed; profile: the start of the path that `end_profile` writes to.
    Raises InputError, with onnxruntime's reason, where it does not load.
    """

    def __init__(
        self,
        model: Model,
        *,
        threads: int = 0,
        optimize: bool = True,
        layout: bool = True,
        exact: bool = False,
        outputs: Sequence[str] = (),
        trimmed: bool = False,
        profile: str = "",
    ) -> None:
        import onnxruntime as ort

        ort.set_default_logger_severity(4)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads or os.cpu_count() or 1
        options.inter_op_num_threads = 1
        level = ort.GraphOptimizationLevel
        most = level.ORT_ENABLE_ALL if layout else level.ORT_ENABLE_EXTENDED
        options.graph_optimization_level = most if optimize else level.ORT_DISABLE_ALL
        # > spinning threads of one session slow every other session of the process down
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if exact:
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        self._session = _open(_with_outputs(model, outputs, trimmed=trimmed), options)
        self.outputs = [output.name for output in self._session.get_outputs()]
        self.inputs = [value.name for value in self._session.get_inputs()]
        self._edges = edges(model)

    def encoded(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The feeds as the model takes them: float values as codes where an input carries codes."""
        if not self._edges:
            return dict(feeds)
        return {
            name: self._edges[name].encode(np.asarray(value)) if name in self._edges else value
            for name, value in feeds.items()
        }

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """The outputs (all, or those named) for one batch; of a model whose edges carry codes, in float all the same.

        Raises LimitError, with onnxruntime's reason, where the run fails.
        """
        names = list(self.outputs if outputs is None else outputs)
        if not names:  # > which are all of them to onnxruntime
            return {}
        given = self.encoded({name: feeds[name] for name in self.inputs if name in feeds})
        try:
            values = self._session.run(names, given)
        except Exception as error:
            raise LimitError(f"onnxruntime stopped while running the model: {_one_line(error)}") from error
        return {
            name: self._edges[name].decode(value) if name in self._edges else value
            for name, value in zip(names, values, strict=True)
        }

    def run_raw(self, feeds: Mapping[str, Array]) -> None:
        """One run of feeds that are `encoded`, nothing returned: for the clock."""
        self._session.run(None, feeds)

    def end_profile(self) -> str:
        """The path of onnxruntime's trace of all runs so far, of a session with `profile`."""
        return str(self._session.end_profiling())


def input_specs(model: Model) -> list[InputSpec]:
    """The inputs that must be fed: graph inputs that are no initializers.

    Raises InputError for an input that is no tensor, of no known type, or whose name is no text.
    """
    graph = model.proto.graph
    given = {tensor.name for tensor in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    specs = []
    for value in graph.input:
        if value.name in given:
            continue
        if not isinstance(value.name, str):
            raise InputError(f"the name {value.name!r} is no text: names in ONNX are UTF-8")
        if not value.type.HasField("tensor_type"):
            kind = value.type.WhichOneof("value") or "untyped"
            raise InputError(f"input {value.name!r} is a {kind.removesuffix('_type')}, not a tensor")
        tensor = value.type.tensor_type
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        except KeyError as error:
            raise InputError(f"input {value.name!r} has a type that ONNX does not have: {error}") from error
        shape = tuple(_dimension(dim) for dim in tensor.shape.dim)
        specs.append(InputSpec(value.name, dtype, shape))
    return specs


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None  # some exporters write -1
    return str(dim.dim_param) or None


def _with_outputs(model: Model, outputs: Iterable[str], *, trimmed: bool) -> Model:
    """The model with these tensors among its outputs, or as its only ones; onnxruntime infers their types."""
    names = list(dict.fromkeys(outputs))
    present = {value.name for value in model.proto.graph.output}
    wanted = [name for name in names if name not in present]
    if not wanted and not (trimmed and names):
        return model
    copy = model.copy()
    if trimmed and names:
        keep = [value for value in copy.proto.graph.output if value.name in names]
        del copy.proto.graph.output[:]
        copy.proto.graph.output.extend(keep)
    copy.proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    return copy


def _open(model: Model, options: Any) -> Any:
    if model.nbytes <= INLINE:
        return _create(model.to_proto().SerializeToString(), options)
    # the folder may go once the session stands: onnxruntime keeps the file mapped
    with tempfile.TemporaryDirectory(prefix="onnx-compress-") as folder:
        proto, pieces = model.referring("weights")
        with (Path(folder) / "weights").open("wb") as file:
            write_aligned(file, pieces)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        return _create(proto.SerializeToString(), options)


def _create(serialized: bytes, options: Any) -> Any:
    import onnxruntime as ort

    try:
        return ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(f"onnxruntime cannot load the model: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
