"""What numba has no words for: sums that stay in registers, 16-bit floats, addresses, a counter that threads share.

Numbers are at addresses, strides in elements. What is made of LLVM's instructions here is part of what numba compiles.
"""

import platform
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic


_FEATURES = frozenset((get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES).split(","))
"""Of the processor that numba compiles for, as a rule the one at hand."""
LANES = 16 if "+avx512f" in _FEATURES else 8 if "+avx2" in _FEATURES else 4
"""Float32 numbers of a register."""
KNOWS_HALF = platform.machine() not in ("x86_64", "AMD64") or "+f16c" in _FEATURES
"""Whether the processor has instructions for float16; without them LLVM would end the process."""
ROWS = 6
"""Rows of a `product`."""
WIDE = 2 if LANES == 8 else 4
"""Registers side by side in a product: ROWS·WIDE sums, the columns and a factor fit AVX2's 16 registers, or the 32 of others."""

_FLOAT, _INT, _LONG, _HALF = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(16)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_AT = types.intp
_POWER = (0.00015337577, 0.0013399860, 0.0096185198, 0.055503290, 0.24022646, 0.69314718, 1.0)
"""Of a polynomial for 2**x from -0.5 to 0.5 (least squares at Chebyshev's nodes, relative error 2e-8)."""
LINE = 64
"""Bytes that processors fetch at once."""
_ROUNDER = 12582912.0  # 1.5 * 2**23: a number that was added to it is rounded, and stands in its lowest bits


def bytes_of(kind: str) -> int:
    """Return how many bytes a number has."""
    return 4 if kind == "float32" else 2


def product(vectors: int, adds: bool) -> Callable[..., None]:
    """Make `product(a, a_stride, b, b_stride, c, c_stride, depth)`: c = a @ b, or c += a @ b.

    a is (ROWS, depth), b (depth, vectors·LANES), c (ROWS, vectors·LANES), float32; depth is 1 or more.
    """

    @intrinsic
    def multiply(context: Any, a: Any, a_stride: Any, b: Any, b_stride: Any, c: Any, c_stride: Any, depth: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            a, a_stride, b, b_stride, c, c_stride, depth = arguments
            a, b, c = (builder.inttoptr(address, _FLOAT.as_pointer()) for address in (a, b, c))
            entry = builder.block
            places = [
                _vector_at(builder, c, builder.add(builder.mul(c_stride, _LONG(row)), _LONG(vector * LANES)))
                for row in range(ROWS)
                for vector in range(vectors)
            ]
            former = [_load(builder, place) if adds else ir.Constant(_VECTOR, None) for place in places]
            left = [builder.gep(a, [builder.mul(a_stride, _LONG(row))]) for row in range(ROWS)]
            loop, done = builder.append_basic_block("depth"), builder.append_basic_block("done")
            builder.branch(loop)

            builder.position_at_end(loop)
            step = builder.phi(_LONG)
            step.add_incoming(_LONG(0), entry)
            sums = [builder.phi(_VECTOR) for _ in former]
            for phi, value in zip(sums, former):
                phi.add_incoming(value, entry)
            begin = builder.mul(step, b_stride)
            right = [
                _load(builder, _vector_at(builder, b, builder.add(begin, _LONG(vector * LANES))))
                for vector in range(vectors)
            ]
            new = []
            for row in range(ROWS):
                factor = _everywhere(builder, builder.load(builder.gep(left[row], [step])))
                own = sums[row * vectors : (row + 1) * vectors]
                new += [_fma(builder, factor, column, value) for column, value in zip(right, own)]
            following = builder.add(step, _LONG(1))
            step.add_incoming(following, loop)
            for phi, value in zip(sums, new):
                phi.add_incoming(value, loop)
            builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)

            builder.position_at_end(done)
            for place, value in zip(places, new):
                _store(builder, value, place)
            return context.get_dummy_value()

        return types.void(*[_AT] * 7), generate

    return multiply


def dots(size: int) -> Callable[[int, int, int], None]:
    """Make `dots(one, many, sums)`: the products of a row with LANES rows that follow each other, (size,) float32 each.

    Args:
        size: A multiple of LANES.
    """
    parts = size // LANES

    @intrinsic
    def multiply(context: Any, one: Any, many: Any, sums: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            one, many, sums = (builder.inttoptr(address, _VECTOR.as_pointer()) for address in arguments)
            left = [_load(builder, builder.gep(one, [_LONG(part)])) for part in range(parts)]
            totals = []
            for row in range(LANES):
                total: Any = ir.Constant(_VECTOR, None)
                for part in range(parts):
                    right = _load(builder, builder.gep(many, [_LONG(row * parts + part)]))
                    total = _fma(builder, left[part], right, total)
                totals.append(total)
            _store(builder, _sums(builder, totals), sums)
            return context.get_dummy_value()

        return types.void(*[_AT] * 3), generate

    return multiply


def transposed(rows: int, size: int) -> Callable[[int, int], None]:
    """Make `transposed(source, target)`: (rows, size) float32 become (size, rows); both are multiples of LANES."""
    parts, across = size // LANES, rows // LANES

    @intrinsic
    def copy(context: Any, source: Any, target: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            source, target = (builder.inttoptr(address, _VECTOR.as_pointer()) for address in arguments)
            with cgutils.for_range(builder, _LONG(parts * across)) as loop:
                row, part = (getattr(builder, name)(loop.index, _LONG(parts)) for name in ("udiv", "urem"))
                begin = builder.add(builder.mul(row, _LONG(LANES * parts)), part)
                block = [
                    _load(builder, builder.gep(source, [builder.add(begin, _LONG(place * parts))]))
                    for place in range(LANES)
                ]
                begin = builder.add(builder.mul(part, _LONG(LANES * across)), row)
                for place, vector in enumerate(_columns(builder, block)):
                    _store(builder, vector, builder.gep(target, [builder.add(begin, _LONG(place * across))]))
            return context.get_dummy_value()

        return types.void(_AT, _AT), generate

    return copy


def weights(size: int) -> Callable[[int, int, int], float]:
    """Make `weights(logits, top, totals)`: a row of (size,) logits, base 2, becomes what its keys weigh.

    `top` is the highest logit so far, and `totals`, (LANES,), hold the sum of all weights, relative to it: both are brought up to date.
    What was weighed before is to be multiplied by what is returned.

    Args:
        size: LANES times a power of 2.
    """

    @intrinsic
    def weigh(context: Any, logits: Any, top: Any, totals: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            logits, totals = (builder.inttoptr(arguments[place], _VECTOR.as_pointer()) for place in (0, 2))
            top = builder.inttoptr(arguments[1], _FLOAT.as_pointer())
            places = [builder.gep(logits, [_LONG(place)]) for place in range(size // LANES)]
            found = [_load(builder, place) for place in places]
            highest = _in_pairs(found, lambda *pair: _greater(builder, *pair))
            most = _call(builder, f"llvm.vector.reduce.fmax.v{LANES}f32", _FLOAT, highest, fastmath=["nnan"])
            former = builder.load(top)
            new = _greater(builder, most, former)
            builder.store(new, top)
            shrink = _power(builder, builder.fsub(former, new))
            base = _everywhere(builder, new)
            powers = [_power(builder, builder.fsub(logit, base)) for logit in found]
            for power, place in zip(powers, places):
                _store(builder, power, place)
            total = _in_pairs(powers, builder.fadd)
            kept = _fma(builder, _load(builder, totals), _everywhere(builder, shrink), total)
            _store(builder, kept, totals)
            return shrink

        return types.float32(*[_AT] * 3), generate

    return weigh


def widened(size: int, kind: str) -> Callable[[int, int], None]:
    """Make `widened(source, target)`: copy (size,) numbers of a kind as float32."""
    element = _FLOAT if kind == "float32" else _HALF

    @intrinsic
    def copy(context: Any, source: Any, target: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            source, target = (
                builder.inttoptr(address, own.as_pointer()) for address, own in zip(arguments, (element, _FLOAT))
            )
            for at, lanes in _cut(size):
                loaded = builder.load(_vector_at(builder, source, _LONG(at), lanes))
                loaded.align = bytes_of(kind)
                _store(builder, _as_float(builder, loaded, kind, lanes), _vector_at(builder, target, _LONG(at), lanes))
            return context.get_dummy_value()

        return types.void(_AT, _AT), generate

    return copy


def narrowed(size: int, kind: str) -> Callable[[int, int, float], None]:
    """Make `narrowed(source, target, factor)`: copy (size,) float32, times a factor, as numbers of a kind, rounded to even."""
    element = _FLOAT if kind == "float32" else _HALF

    @intrinsic
    def copy(context: Any, source: Any, target: Any, factor: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            source, target = (
                builder.inttoptr(address, own.as_pointer()) for address, own in zip(arguments, (_FLOAT, element))
            )
            for at, lanes in _cut(size):
                value = _load(builder, _vector_at(builder, source, _LONG(at), lanes))
                value = builder.fmul(value, _everywhere(builder, arguments[2], lanes))
                stored = _from_float(builder, value, kind, lanes)
                builder.store(stored, _vector_at(builder, target, _LONG(at), lanes)).align = bytes_of(kind)
            return context.get_dummy_value()

        return types.void(_AT, _AT, types.float32), generate

    return copy


def fetched(number: int) -> Callable[[int], None]:
    """Make `fetched(source)`: have so many bytes on their way into the processor's cache by the time they are read."""

    @intrinsic
    def fetch(context: Any, source: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            for at in range(0, number, LINE):
                byte = builder.inttoptr(builder.add(arguments[0], _LONG(at)), ir.IntType(8).as_pointer())
                _call(builder, "llvm.prefetch.p0", ir.VoidType(), byte, _INT(0), _INT(2), _INT(1))
            return context.get_dummy_value()

        return types.void(_AT), generate

    return fetch


@intrinsic
def next_of(context: Any, counter: Any) -> Any:
    """Return an int64 and raise it by one: no two threads get the same number, and a later one sees what an earlier one wrote."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], _LONG.as_pointer())
        return builder.atomic_rmw("add", pointer, _LONG(1), "acq_rel")

    return types.int64(_AT), generate


def pointer_to(dtype: Any) -> Callable[[int], Any]:
    """Make a function from an address to what `numba.carray` takes, for elements of a numpy type."""
    kind = types.CPointer(from_dtype(np.dtype(dtype)))

    @intrinsic
    def pointer(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(kind))

        return kind(_AT), generate

    return pointer


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: Any, fastmath: Sequence[str] = ()) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(
        cgutils.get_or_insert_function(builder.module, kind, name), arguments, fastmath=tuple(fastmath)
    )


def _fma(builder: ir.IRBuilder, factor: Any, other: Any, summand: Any) -> Any:
    kind = factor.type
    name = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
    return _call(builder, f"llvm.fma.{name}", kind, factor, other, summand)


def _vector_at(builder: ir.IRBuilder, base: Any, place: Any, lanes: int = LANES) -> Any:
    pointer = builder.gep(base, [place])
    return builder.bitcast(pointer, ir.VectorType(base.type.pointee, lanes).as_pointer())


def _load(builder: ir.IRBuilder, pointer: Any) -> Any:
    loaded = builder.load(pointer)
    loaded.align = 4
    return loaded


def _store(builder: ir.IRBuilder, value: Any, pointer: Any) -> None:
    builder.store(value, pointer).align = 4


def _everywhere(builder: ir.IRBuilder, scalar: Any, lanes: int = LANES) -> Any:
    nothing = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(nothing, scalar, _INT(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_INT, lanes), [0] * lanes))


def _in_pairs(values: Sequence[Any], join: Callable[[Any, Any], Any]) -> Any:
    while len(values) > 1:
        values = [join(*pair) for pair in zip(values[::2], values[1::2])]
    return values[0]


def _greater(builder: ir.IRBuilder, one: Any, other: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", one, other), one, other)


def _sums(builder: ir.IRBuilder, vectors: list[Any]) -> Any:
    """Return a vector of the sums of LANES vectors each: halves of two are put side by side and added, again and again."""
    width, lanes = LANES, np.arange(LANES)
    while len(vectors) > 1:
        half, width = len(vectors) // 2, width // 2
        group, inner = np.divmod(lanes, 2 * width)
        first = group * 2 * width + inner % width + (inner >= width) * LANES
        masks = [ir.Constant(ir.VectorType(_INT, LANES), (first + part).tolist()) for part in (0, width)]
        vectors = [
            builder.fadd(*(builder.shuffle_vector(one, other, mask) for mask in masks))
            for one, other in zip(vectors[:half], vectors[half:])
        ]
    return vectors[0]


def _columns(builder: ir.IRBuilder, vectors: list[Any]) -> list[Any]:
    """Return the columns of LANES vectors: the halves are interleaved until all is transposed."""
    half, lanes = LANES // 2, np.arange(LANES)
    masks = [
        ir.Constant(ir.VectorType(_INT, LANES), (lanes // 2 + lanes % 2 * LANES + begin).tolist())
        for begin in (0, half)
    ]
    for _ in range(LANES.bit_length() - 1):
        pairs = zip(vectors[:half], vectors[half:])
        vectors = [builder.shuffle_vector(*pair, mask) for pair in pairs for mask in masks]
    return vectors


def _constant(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def _power(builder: ir.IRBuilder, x: Any) -> Any:
    """Return 2**x for x ≤ 0, a float32 or a vector of them; 0 below -126. numba's `fastmath` would take the rounding away."""
    kind = x.type
    bits = ir.VectorType(_INT, kind.count) if isinstance(kind, ir.VectorType) else _INT
    rounded = builder.fadd(x, _constant(kind, _ROUNDER))
    rest = builder.fsub(x, builder.fsub(rounded, _constant(kind, _ROUNDER)))
    value = _constant(kind, _POWER[0])
    for coefficient in _POWER[1:]:
        value = _fma(builder, value, rest, _constant(kind, coefficient))
    exponent = builder.shl(builder.bitcast(rounded, bits), _constant(bits, 23))
    value = builder.bitcast(builder.add(builder.bitcast(value, bits), exponent), kind)
    return builder.select(builder.fcmp_ordered("<", x, _constant(kind, -126.0)), _constant(kind, 0.0), value)


def _cut(size: int) -> list[tuple[int, int]]:
    """Cut a row into whole registers, and the rest into powers of 2: where each part begins, and how long it is."""
    parts, at = [], 0
    while at < size:
        lanes = min(LANES, 2 ** ((size - at).bit_length() - 1))
        parts.append((at, lanes))
        at += lanes
    return parts


def _as_float(builder: ir.IRBuilder, bits: Any, kind: str, lanes: int) -> Any:
    floats, ints = ir.VectorType(_FLOAT, lanes), ir.VectorType(_INT, lanes)
    if kind == "float32":
        return bits
    if kind == "float16":
        return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), lanes)), floats)
    return builder.bitcast(builder.shl(builder.zext(bits, ints), _constant(ints, 16)), floats)


def _from_float(builder: ir.IRBuilder, value: Any, kind: str, lanes: int) -> Any:
    halves, ints = ir.VectorType(_HALF, lanes), ir.VectorType(_INT, lanes)
    if kind == "float32":
        return value
    if kind == "float16":
        return builder.bitcast(builder.fptrunc(value, ir.VectorType(ir.HalfType(), lanes)), halves)
    bits = builder.bitcast(value, ints)
    last = builder.and_(builder.lshr(bits, _constant(ints, 16)), _constant(ints, 1))
    rounded = builder.add(bits, builder.add(last, _constant(ints, 0x7FFF)))
    quiet = builder.or_(bits, _constant(ints, 0x400000))  # rounding could turn a NaN into infinity
    rounded = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
    return builder.trunc(builder.lshr(rounded, _constant(ints, 16)), halves)
