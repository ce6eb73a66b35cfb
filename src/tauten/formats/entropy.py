"""Lossless entropy coding of tensors for the disk, in blocks that decode on their own.

The codes of a quantized weight are spread like its values: those in the middle are more frequent,
and neighbours know nothing of each other. So what there is to gain is the difference between
their bits and their entropy, and Huffman codes for bytes of whole codes come within 1% of it
(bench/entropy.py): zlib's strategy `Z_HUFFMAN_ONLY`, which adds a checksum of each block. Of floats
it gains their first bytes, sign and exponent, which are taken apart from the others.

A stream, little endian: magic, CRC-32 of kind and sizes (uint32), kind (uint8: bits of a code,
or one of `FLOATS`), number of dimensions (uint8), the dimensions (uint64; the last one counts
codes), the compressed bytes of each block (uint32), and the blocks, each a zlib stream. Codes make
a matrix of as many rows, floats one with a row for each byte of a float. A block holds as many
whole rows as `BLOCK_CODES` allow; where a row alone is longer, a piece of one. Each byte before
coding takes a bit at least, so that no block becomes more than 8 times as long.
"""

import itertools
import math
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from tauten.core.errors import CorruptError
from tauten.formats.bits import byte_ranges, pack, packed_bytes, planes, unpack

BLOCK_CODES = 2**17
FLOATS = {16: torch.float16, 17: torch.bfloat16, 32: torch.float32}
_KINDS = {dtype: kind for kind, dtype in FLOATS.items()}
_HEADER = struct.Struct("<4sIBB")
_MAGIC = b"huf1"
_MOST_EXPANSION = 8  # a byte before coding takes a bit at least
_LARGEST_MEMORY = 9  # zlib's own knob: the most symbols that share a table of code lengths


def encode(tensor: Tensor, layout: tuple[int, int] | None = None) -> Tensor:
    """Code a tensor; the same input gives the same bytes with the same zlib.

    Args:
        tensor: float16, bfloat16 or float32 of any shape; or packed codes, uint8, (rows, bytes) or
            (bytes,) for one row.
        layout: Of packed codes: bits of a code, and codes in a row, laid out by `bits.pack`.
    Returns:
        (bytes,) uint8, which may be more than before where all values are equally frequent.
    """
    tensor = tensor.detach().cpu()
    if layout is None:
        kind, bits, columns, shape = _KINDS[tensor.dtype], 8, tensor.numel(), list(tensor.shape)
        matrix = tensor.flatten().view(torch.uint8).view(-1, tensor.itemsize).t().contiguous()
    else:
        kind, columns = layout
        bits, shape = kind, [*tensor.shape[:-1], columns]
        matrix = tensor if tensor.dim() == 2 else tensor[None]

    def compress(piece: tuple[slice, slice]) -> bytes:
        parts = [matrix[piece[0], part] for part in _bytes_of(piece[1], bits, columns)]
        symbols = _symbols(torch.cat(parts, dim=1), bits, piece[1].stop - piece[1].start)
        coder = zlib.compressobj(1, zlib.DEFLATED, 15, _LARGEST_MEMORY, zlib.Z_HUFFMAN_ONLY)
        return coder.compress(symbols.contiguous().numpy().data) + coder.flush()

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        blocks = list(pool.map(compress, _pieces(len(matrix), columns)))
    sizes = struct.pack(f"<{len(shape)}Q{len(blocks)}I", *shape, *map(len, blocks))
    checksum = zlib.crc32(sizes, kind)
    header = _HEADER.pack(_MAGIC, checksum, kind, len(shape))
    return torch.frombuffer(bytearray(b"".join([header, sizes, *blocks])), dtype=torch.uint8)


def decode(stream: Tensor) -> Tensor:
    """Undo `encode`, block by block on all threads of torch.

    Args:
        stream: (bytes,) uint8.
    Returns:
        The tensor.
    Raises:
        CorruptError: The stream is damaged; what it claims never leads to reading past its end,
            nor to more memory than its blocks could fill.
    """
    kind, shape, blocks = _split(stream)
    bits, rows, columns = _matrix_of(kind, shape)
    matrix = torch.empty(rows, packed_bytes(columns, bits), dtype=torch.uint8)

    def decompress(piece: tuple[slice, slice], block: memoryview) -> None:
        height, width = (part.stop - part.start for part in piece)
        per_row = _symbols_per_row(width, bits)
        symbols = _inflate(block, height * per_row).view(height, per_row)
        parts = _packed(symbols, bits, width)
        for target in _bytes_of(piece[1], bits, columns):
            size = target.stop - target.start
            matrix[piece[0], target], parts = parts[:, :size], parts[:, size:]

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(decompress, _pieces(rows, columns), blocks))
    if kind in FLOATS:
        return matrix.t().flatten().view(FLOATS[kind]).view(shape)
    return matrix if len(shape) == 2 else matrix[0]


def _split(stream: Tensor) -> tuple[int, tuple[int, ...], list[memoryview]]:
    """Kind, shape and blocks of a stream."""
    if stream.dtype != torch.uint8 or stream.dim() != 1 or len(stream) < _HEADER.size:
        raise CorruptError("an entropy-coded tensor is cut short")
    data = stream.contiguous().numpy().data
    magic, checksum, kind, dimensions = _HEADER.unpack_from(data)
    start = _HEADER.size + 8 * dimensions
    if magic != _MAGIC or not (kind in FLOATS or (kind in range(1, 9) and dimensions in (1, 2))):
        raise CorruptError("an entropy-coded tensor has a damaged header")
    if len(data) < start:
        raise CorruptError("an entropy-coded tensor is cut short")
    shape = struct.unpack_from(f"<{dimensions}Q", data, _HEADER.size)
    bits, rows, columns = _matrix_of(kind, shape)
    count = _piece_count(rows, columns)
    claimed = rows * packed_bytes(columns, bits)
    if 0 in shape or len(data) < start + 4 * count or claimed > _MOST_EXPANSION * len(data):
        raise CorruptError(f"an entropy-coded tensor lacks blocks for its shape {shape}")
    ends = list(itertools.accumulate(struct.unpack_from(f"<{count}I", data, start)))
    start += 4 * count
    intact = checksum == zlib.crc32(data[_HEADER.size : start], kind)
    if not intact or start + ends[-1] != len(data):
        raise CorruptError("an entropy-coded tensor has other blocks than its header says")
    bounds = itertools.pairwise([0, *ends])
    return kind, shape, [data[start + begin : start + end] for begin, end in bounds]


def _matrix_of(kind: int, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Bits of a code, rows and columns of the matrix that is coded."""
    if kind in FLOATS:
        return 8, FLOATS[kind].itemsize, math.prod(shape)
    return kind, math.prod(shape[:-1]), shape[-1]


def _inflate(block: memoryview, expected: int) -> Tensor:
    """(expected,) uint8 out of a block."""
    decoder = zlib.decompressobj()
    try:
        content = decoder.decompress(block, expected + 1)  # one more would show
    except zlib.error as error:
        raise CorruptError(f"a block of an entropy-coded tensor is damaged: {error}") from error
    if len(content) != expected or not decoder.eof or decoder.unused_data:
        raise CorruptError("a block of an entropy-coded tensor has another length than its codes")
    symbols = torch.empty(expected, dtype=torch.uint8)
    symbols.numpy().data[:] = content
    return symbols


def _pieces(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each block."""
    step = max(1, BLOCK_CODES // max(1, columns))
    for row in range(0, rows, step):
        for column in range(0, max(1, columns), BLOCK_CODES):
            right = min(column + BLOCK_CODES, columns)
            yield slice(row, min(row + step, rows)), slice(column, right)


def _piece_count(rows: int, columns: int) -> int:
    step = max(1, BLOCK_CODES // max(1, columns))
    return -(-rows // step) * max(1, -(-columns // BLOCK_CODES))


def _bytes_of(part: slice, bits: int, columns: int) -> list[slice]:
    return byte_ranges(bits, columns, part.start, part.stop)


def _symbols_per_row(columns: int, bits: int) -> int:
    if len(planes(bits)) == 1:
        return packed_bytes(columns, bits)
    return -(-columns // 2) if bits == 3 else columns


def _symbols(part: Tensor, bits: int, columns: int) -> Tensor:
    """Packed rows -> bytes that hold whole codes, as many as fit: what Huffman codes stand for."""
    if len(planes(bits)) == 1:
        return part
    codes = unpack(part, bits, columns)
    if bits != 3:
        return codes
    codes = torch.nn.functional.pad(codes, (0, columns % 2))
    return codes[:, 0::2] | codes[:, 1::2] << 3


def _packed(symbols: Tensor, bits: int, columns: int) -> Tensor:
    """Undo `_symbols`."""
    if len(planes(bits)) == 1:
        return symbols
    if bits == 3:
        symbols = torch.stack([symbols & 7, symbols >> 3], dim=-1).flatten(1)[:, :columns]
    return pack(symbols, bits)
