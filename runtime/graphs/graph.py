"""Writing an ONNX graph by hand: one line per operation, weights by the names they have in a bundle.

By hand because an exporter traces: it unrolls the denoise loop, renames or folds the weights and changes with every
release of torch. A graph written here takes milliseconds, shares its weights across the loop's iterations and keeps
their names, so that a delta finds its tensors in it. That it computes what torch computes is not assumed:
`runtime/graphs/certificate.py` measures it for every export.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from hotpolicy.runtime.graphs.quantise import Form, Plan, scale_of, steps_of

OPSET = 20  # the first with the Gelu that Gemma uses
IR_VERSION = 10  # of opset 20's time: read by ONNX Runtime 1.18 and newer
KINDS = {
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "bool": TensorProto.BOOL,
    "int64": TensorProto.INT64,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}


@dataclass
class Graph:
    """A graph, or the body of a loop in one. Operations take and return the names of values."""

    name: str
    root: Graph | None = None  # for a body: the graph whose values it sees, and which keeps the weights of both
    plan: Plan = field(default_factory=Plan)  # a body has its root's
    weights: dict[str, Form] = field(default_factory=dict)  # parameters in use, in order of first use
    inputs: dict[str, tuple[int | str, ...]] = field(default_factory=dict)  # name -> its dims
    _nodes: list[NodeProto] = field(default_factory=list)
    _inputs: list[ValueInfoProto] = field(default_factory=list)
    _outputs: list[ValueInfoProto] = field(default_factory=list)
    _constants: dict[tuple[str, tuple[int, ...], bytes], TensorProto] = field(default_factory=dict)
    _count: int = 0

    def input(self, name: str, kind: str, dims: Sequence[int | str]) -> str:
        """`dims` are numbers, or names for what may vary."""
        self._inputs.append(helper.make_tensor_value_info(name, KINDS[kind], dims))
        self.inputs[name] = tuple(dims)
        return name

    def output(self, name: str, value: str, kind: str, dims: Sequence[int | str]) -> None:
        self._nodes.append(helper.make_node("Identity", [value], [name], name=f"{self.name}/{name}"))
        self._outputs.append(helper.make_tensor_value_info(name, KINDS[kind], dims))

    def weight(self, name: str, form: Form = "fp32") -> str:
        (self.root or self).weights[name] = form
        return name

    def product(self, x: str, name: str, bias: str | None = None) -> str:
        """x (rows, in) times the transpose of the weight (out, in) of that name, in the form the plan gives it; `bias`
        is another parameter's name. (rows, out) fp32."""
        form = self.plan.product(name)
        weight, last = self.weight(name, form), [self.weight(bias)] if bias else []
        if form == "fp32":
            return self.op("Gemm", x, weight, *last, transB=1)
        if form == "fp16":
            y = self.cast(self.op("Gemm", self.cast(x, "float16"), weight, transB=1), "float32")
        else:
            y = self._integer_product(x, weight, self.plan.range(name))
        return self.op("Add", y, *last) if last else y

    def _integer_product(self, x: str, weight: str, known: tuple[float, float] | None) -> str:
        """Integers times integers, with a scale per row of the weight. Without a range known beforehand, it is that of
        each x. Not written as a product between quantisations (QDQ): ONNX Runtime would make integers of few of those,
        and of none in a loop, and take 4 times as long."""
        scale = scale_of(weight)
        if known is None:
            whole, step, zero = self.ops("DynamicQuantizeLinear", 3, x)
            both = self.op("Mul", step, scale)
        else:
            size, offset = steps_of(known)
            step, zero = self.constant(size), self.constant(offset, "uint8")
            whole = self.op("QuantizeLinear", x, step, zero)
            both = (self.root or self).op("Mul", step, scale)  # of constants only: before the loop
        sums = self.cast(self.op("MatMulInteger", whole, weight, zero), "float32")
        return self.op("Mul", sums, both)

    def rows(self, name: str, indices: str) -> str:
        """Of a table's rows those that are asked for, fp32."""
        form = self.plan.table()
        picked = self.op("Gather", self.weight(name, form), indices, axis=0)
        return picked if form == "fp32" else self.cast(picked, "float32")

    def constant(self, value: object, kind: str = "float32") -> str:
        """A small array inside the graph's own file; equal ones are kept once."""
        array, root = np.asarray(value, kind), self.root or self
        key = (kind, array.shape, array.tobytes())
        if key not in root._constants:
            root._constants[key] = numpy_helper.from_array(array, f"constant.{len(root._constants)}")
        return root._constants[key].name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append an operation; returns the name of its result. An input of "" is left out."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, results: int, *inputs: str, **attributes: Any) -> list[str]:
        root = self.root or self
        names = [f"{self.name}/{kind}.{root._count + i}" for i in range(results)]
        root._count += results
        self._nodes.append(helper.make_node(kind, list(inputs), names, name=names[0], **attributes))
        return names

    def cast(self, value: str, kind: str) -> str:
        return self.op("Cast", value, to=KINDS[kind])

    def reshape(self, value: str, *dims: int) -> str:
        """0 keeps a dimension, -1 is what remains."""
        return self.op("Reshape", value, self.constant(dims, "int64"))

    def body(self, name: str) -> Graph:
        return Graph(name, root=self.root or self, plan=self.plan)

    def loop(self, count: str, start: str, body: Graph) -> str:
        """Run a body of (iteration, go on, value) -> (go on, value) `count` times; the last value."""
        return self.op("Loop", count, "", start, body=body.proto())

    def proto(self, weights: Sequence[TensorProto] = ()) -> GraphProto:
        """`weights` are the parameters in use, as tensors that say where their data is."""
        initializers = [*weights, *self._constants.values()]
        return helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, initializers)

    def to_bytes(self, weights: Sequence[TensorProto], metadata: Mapping[str, str]) -> bytes:
        """The content of an .onnx file."""
        model = helper.make_model(
            self.proto(weights),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="hotpolicy",
        )
        helper.set_model_props(model, dict(metadata))
        return model.SerializeToString(deterministic=True)


def external_tensor(name: str, array: np.ndarray, location: str, offset: int) -> TensorProto:
    """A tensor whose bytes lie in another file of the same folder."""
    kind = KINDS[array.dtype.name]
    tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
