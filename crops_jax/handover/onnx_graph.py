"""A tower as one ONNX graph: token ids in, unit vectors out, pooling and normalisation within it.

The operators are written out, for the tower is known: a converter would pin versions of jax that this project has left.
Letters: B texts, T tokens, E width, G KV heads, R query heads per KV head, d head size, F ffn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from crops_jax.models import hf_import
from crops_jax.models.bert import Bert
from crops_jax.models.qwen2 import Qwen2
from crops_jax.models.sentence_folder import PoolingMode

if TYPE_CHECKING:
    import onnx

OPSET, IR = 18, 9
IDS, MASK, VECTOR = "input_ids", "attention_mask", "sentence_embedding"
_MASKED = np.float32(-1e30)


class _Graph:
    """Nodes and constants; a call adds a node and gives the name of what it computes."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def __call__(self, operator: str, *inputs: str | np.ndarray, outputs: int = 1, **attributes: Any) -> Any:
        import onnx

        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        made = [f"{operator}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(onnx.helper.make_node(operator, names, made, **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, value: np.ndarray, name: str = "") -> str:
        """The name of a constant; scalars and small shapes that are equal are one."""
        value = np.asarray(value)
        if not name and value.size < 32:
            name = f"constant_{value.dtype}_{'x'.join(map(str, value.shape))}_{value.tobytes().hex()}"
        name = name or f"constant_{len(self.constants)}"
        self.constants.setdefault(name, value)
        return name

    def shaped(self, x: str, *shape: int) -> str:
        """Reshape; 0 keeps an axis, -1 is what is left."""
        return self("Reshape", x, np.array(shape, np.int64))

    def at(self, x: str, *axes: int) -> str:
        """New axes of size 1."""
        return self("Unsqueeze", x, np.array(axes, np.int64))

    def linear(self, x: str, weights: dict[str, np.ndarray], name: str) -> str:
        """x W + b, of the layer of this name in the checkpoint's own form."""
        y = self("MatMul", x, self.constant(np.ascontiguousarray(weights[f"{name}.weight"].T), f"{name}.weight"))
        bias = weights.get(f"{name}.bias")
        return y if bias is None else self("Add", y, self.constant(bias, f"{name}.bias"))


def tower_graph(tower: Qwen2 | Bert, pooling: PoolingMode) -> onnx.ModelProto:
    """int64[B, T] `input_ids` and `attention_mask` (1 on text, padding on either side) to float32[B, E] unit vectors.

    B and T are free; a text without a token gives zeros. `pooling` is mean, lasttoken or cls.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph, weights = _Graph(), hf_import.to_hf(tower)
    count = graph("CumSum", MASK, np.int64(1))
    positions = graph("Max", graph("Sub", count, np.int64(1)), np.int64(0))
    match tower:
        case Qwen2():
            hidden = _qwen2(graph, weights, tower, positions)
        case Bert():
            hidden = _bert(graph, weights, tower, positions)
    pooled = _pooled(graph, hidden, count, pooling)
    graph.nodes.append(helper.make_node("Identity", [_normalised(graph, pooled)], [VECTOR]))
    tokens = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in (IDS, MASK)]
    vector = helper.make_tensor_value_info(VECTOR, TensorProto.FLOAT, ["batch", tower.config.width])
    constants = [numpy_helper.from_array(value, name) for name, value in graph.constants.items()]
    made = helper.make_graph(graph.nodes, "tower", tokens, [vector], constants)
    return onnx.helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="crops_jax"
    )


def _qwen2(g: _Graph, weights: dict[str, np.ndarray], tower: Qwen2, positions: str) -> str:
    c = tower.config
    allowed = _allowed(g, c.causal)
    frequency = (c.rope_theta ** (-np.arange(0, c.head_size, 2, dtype=np.float32) / c.head_size)).astype(np.float32)
    angle = g("Mul", g.at(g("Cast", positions, to=1), 1, 2, 4), frequency)  # [B, 1, 1, T, d/2]
    cos, sin = g("Cos", angle), g("Sin", angle)
    x = g("Gather", g.constant(weights["embed_tokens.weight"], "embed_tokens.weight"), IDS)
    for layer in range(c.layers):
        name = f"layers.{layer}"
        h = _rms_norm(g, x, weights[f"{name}.input_layernorm.weight"], c.norm_eps)
        heads = c.heads // c.kv_heads
        q = _heads(g, g.linear(h, weights, f"{name}.self_attn.q_proj"), c.kv_heads, heads, c.head_size)
        k = _heads(g, g.linear(h, weights, f"{name}.self_attn.k_proj"), c.kv_heads, 1, c.head_size)
        v = _heads(g, g.linear(h, weights, f"{name}.self_attn.v_proj"), c.kv_heads, 1, c.head_size)
        h = _attention(g, _rotated(g, q, cos, sin), _rotated(g, k, cos, sin), v, allowed, c.head_size)
        x = g("Add", x, g.linear(h, weights, f"{name}.self_attn.o_proj"))
        h = _rms_norm(g, x, weights[f"{name}.post_attention_layernorm.weight"], c.norm_eps)
        gate = g.linear(h, weights, f"{name}.mlp.gate_proj")
        h = g("Mul", g("Mul", gate, g("Sigmoid", gate)), g.linear(h, weights, f"{name}.mlp.up_proj"))
        x = g("Add", x, g.linear(h, weights, f"{name}.mlp.down_proj"))
    return _rms_norm(g, x, weights["norm.weight"], c.norm_eps)


def _bert(g: _Graph, weights: dict[str, np.ndarray], tower: Bert, positions: str) -> str:
    c = tower.config
    allowed, size = _allowed(g, causal=False), c.width // c.heads

    def norm(x: str, name: str) -> str:
        scale, bias = (g.constant(weights[f"{name}.{part}"], f"{name}.{part}") for part in ("weight", "bias"))
        return g("LayerNormalization", x, scale, bias, axis=-1, epsilon=c.norm_eps)

    def table(name: str) -> str:
        return g.constant(weights[f"embeddings.{name}.weight"], f"embeddings.{name}.weight")

    x = g("Add", g("Gather", table("word_embeddings"), IDS), g("Gather", table("position_embeddings"), positions))
    x = norm(g("Add", x, weights["embeddings.token_type_embeddings.weight"][0]), "embeddings.LayerNorm")
    for layer in range(c.layers):
        name = f"encoder.layer.{layer}"
        q, k, v = (
            _heads(g, g.linear(x, weights, f"{name}.attention.self.{part}"), c.heads, 1, size)
            for part in ("query", "key", "value")
        )
        h = g.linear(_attention(g, q, k, v, allowed, size), weights, f"{name}.attention.output.dense")
        x = norm(g("Add", x, h), f"{name}.attention.output.LayerNorm")
        h = g.linear(x, weights, f"{name}.intermediate.dense")
        erf = g("Add", g("Erf", g("Mul", h, np.float32(2**-0.5))), np.float32(1))
        h = g.linear(g("Mul", g("Mul", h, np.float32(0.5)), erf), weights, f"{name}.output.dense")
        x = norm(g("Add", x, h), f"{name}.output.LayerNorm")
    return x


def _allowed(g: _Graph, causal: bool) -> str:
    """bool[B, 1, 1, 1 or T, T]: which tokens a token may look at."""
    allowed = g.at(g("Cast", MASK, to=9), 1, 2, 3)
    if not causal:
        return allowed
    tokens = g("Gather", g("Shape", MASK), np.int64(1))
    place = g("Range", np.int64(0), tokens, np.int64(1))
    return g("And", allowed, g("GreaterOrEqual", g.at(place, 1), g.at(place, 0)))


def _heads(g: _Graph, x: str, groups: int, heads: int, size: int) -> str:
    """[B, T, G R d] as [B, G, R, T, d]."""
    return g("Transpose", g.shaped(x, 0, 0, groups, heads, size), perm=[0, 2, 3, 1, 4])


def _rotated(g: _Graph, x: str, cos: str, sin: str) -> str:
    a, b = g("Split", x, outputs=2, axis=-1, num_outputs=2)
    first = g("Sub", g("Mul", a, cos), g("Mul", b, sin))
    return g("Concat", first, g("Add", g("Mul", b, cos), g("Mul", a, sin)), axis=-1)


def _attention(g: _Graph, q: str, k: str, v: str, allowed: str, size: int) -> str:
    """[B, T, G R d] of q [B, G, R, T, d], and k and v [B, G, 1, T, d]."""
    scores = g("MatMul", g("Mul", q, np.float32(size**-0.5)), g("Transpose", k, perm=[0, 1, 2, 4, 3]))
    weights = g("Softmax", g("Where", allowed, scores, _MASKED), axis=-1)
    return g.shaped(g("Transpose", g("MatMul", weights, v), perm=[0, 3, 1, 2, 4]), 0, 0, -1)


def _rms_norm(g: _Graph, x: str, scale: np.ndarray, eps: float) -> str:
    square = g("ReduceMean", g("Mul", x, x), np.array([-1]), keepdims=1)
    return g("Mul", g("Div", x, g("Sqrt", g("Add", square, np.float32(eps)))), scale)


def _pooled(g: _Graph, hidden: str, count: str, pooling: PoolingMode) -> str:
    """float32[B, E]; `count` says how many tokens of text there are up to each place."""
    total = g("ReduceSum", MASK, np.array([1]), keepdims=1)
    match pooling:
        case "mean":
            weight = g("Div", g("Cast", MASK, to=1), g("Cast", g("Max", total, np.int64(1)), to=1))
        case "lasttoken" | "cls":
            wanted = total if pooling == "lasttoken" else np.int64(1)
            weight = g("Cast", g("Mul", MASK, g("Cast", g("Equal", count, wanted), to=7)), to=1)
        case _:
            raise ValueError(f"no exported tower pools by {pooling}")
    return g("Squeeze", g("MatMul", g.at(weight, 1), hidden), np.array([1]))


def _normalised(g: _Graph, x: str) -> str:
    square = g("ReduceSum", g("Mul", x, x), np.array([-1]), keepdims=1)
    safe = g("Where", g("Greater", square, np.float32(0)), square, np.float32(1))
    return g("Div", x, g("Sqrt", safe))
