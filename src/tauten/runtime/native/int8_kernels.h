// Products of integer weights with activations rounded to int8.
// Part of one instruction set's unit, after its `Simd`.
#pragma once
#include "round_tokens.h"
#include "weights.h"

namespace tauten {
namespace {

// What `dot` takes for the codes of a chunk: the codes of a packed weight, ...
template <int Bits>
struct Packed {
  static constexpr bool kTiled = false;  // activations come as `rounded`
  static constexpr int kBytes = 64 * Bits;
  static constexpr bool kSigned = Bits == 8 && Simd::kSignedBytes;
  struct Block {
    Block() = default;
    Block(const Problem&, int64_t) {}
  };
  Simd::Bytes codes[kQuads];
  Packed(const uint8_t* p, const Block&) {
    for (int i = 0; i < Bits; ++i) __builtin_prefetch(p + 4096 + 64 * i);
    unpack<Bits>(p, codes);
    if constexpr (Bits == 8)
      for (auto& v : codes) v = signed_for_dot(v);
  }
  Simd::Bytes operator[](int i) const { return codes[i]; }
};

// ... their entries in a codebook of 16 int8 a row, of which `book` holds rows 0, 4, 8, 12 of a
// block, then rows 1, 5, 9, 13 and so on, ...
template <int Bits>
struct Booked : Packed<Bits> {
  static constexpr bool kSigned = Simd::kSignedBytes;
  struct Block {
    Simd::Bytes tables[4];
    Block(const Problem& p, int64_t block) {
      for (int i = 0; i < 4; ++i)
        tables[i] = signed_for_dot(Simd::load(p.book + (4 * block + i) * 64));
    }
  };
  Booked(const uint8_t* p, const Block& block) : Packed<Bits>(p, typename Packed<Bits>::Block()) {
    for (auto& v : this->codes) v = Simd::lookup(block.tables, v);
  }
};

// ... or either of them, stored before.
template <bool Signed>
struct Unpacked {
  static constexpr bool kTiled = true;
  static constexpr int kBytes = 64 * kQuads;
  static constexpr bool kSigned = Signed;
  struct Block {
    Block(const Problem&, int64_t) {}
  };
  const uint8_t* p;
  Unpacked(const uint8_t* p, const Block&) : p(p) {}
  Simd::Bytes operator[](int i) const { return Simd::load(p + 64 * i); }
};

// A block of rows: its codes and, where these are unpacked, scale and shift of each group in
// float32, (groups, 2, 16).
struct Rows {
  int64_t block;
  const uint8_t* codes;
  const float* grid;
};

template <class Codes>
inline Simd::Floats scale_of(const Problem& p, const Rows& rows, int64_t group) {
  if constexpr (Codes::kTiled) return Simd::load_floats(rows.grid + group * 2 * kBlockRows);
  return load_real(p.scale, (rows.block * p.groups + group) * kBlockRows, p.half);
}

template <class Codes>
inline Simd::Floats shift_of(const Problem& p, const Rows& rows, int64_t group,
                             Simd::Floats scale) {
  if constexpr (Codes::kTiled) return Simd::load_floats(rows.grid + (group * 2 + 1) * kBlockRows);
  return load_shift(p, (rows.block * p.groups + group) * kBlockRows, scale, 0);
}

// Where a tile finds its tokens' quads.
struct Tile {
  const int8_t* x;
  int64_t token_step, quad_step;
};

// Adds the products of `chunks` chunks to the sums of a tile. Some sums stand in several chains,
// to hide the latency of `dot`.
template <class Codes, int Tokens, int Chains>
TAUTEN_INLINE void dot_chunks(Tile& tile, const uint8_t* codes, int64_t chunks,
                              const typename Codes::Block& at,
                              Simd::Ints (&dots)[Tokens][Chains]) {
  do {  // a group has a chunk at least: one test less, and registers are copied less
    const Codes code(codes, at);
    TAUTEN_UNROLL for (int i = 0; i < kQuads; ++i) {
      const Simd::Bytes v = code[i];
      TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t) {
        const Simd::Quad quad = Simd::quad(tile.x + t * tile.token_step + i * tile.quad_step);
        Simd::Ints& dot = dots[t][i % Chains];
        dot = Simd::template dot<Codes::kSigned>(dot, v, quad);
      }
    }
    codes += Codes::kBytes, tile.x += kQuads * tile.quad_step;
  } while (--chunks > 0);
}

// `Tokens` tokens by a block of rows. All loops but those over groups and chunks are unrolled, so
// that the arrays are registers.
template <class Codes, int Tokens>
void int8_tile(const Problem& p, const Rows& rows, int64_t token) {
  constexpr int kChains = Tokens >= 4 ? 1 : 4 / Tokens;
  const int64_t width = p.chunks * kChunkColumns;
  const int bits = p.book ? 8 : p.bits;
  const int base = dot_offset(bits) - (p.zero_kind == Zero::kNone ? center(bits) : 0);
  const typename Codes::Block at(p, rows.block);
  Tile tile{p.rounded + token * width, Codes::kTiled ? 4 : width, Codes::kTiled ? 4 * Tokens : 4};
  const uint8_t* codes = rows.codes;
  Simd::Floats y[Tokens];
  TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t) y[t] = Simd::splat_float(0);

  for (int64_t group = 0; group < p.groups; ++group) {
    const int32_t* sum = p.sum + group * p.tokens + token;
    const float* step = p.step + group * p.tokens + token;
    Simd::Ints dots[Tokens][kChains];
    TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t)
      TAUTEN_UNROLL for (int c = 0; c < kChains; ++c)
        dots[t][c] = Simd::splat_int(c ? 0 : base * sum[t]);
    const int64_t chunks = chunks_before(p, group + 1) - chunks_before(p, group);
    dot_chunks<Codes>(tile, codes, chunks, at, dots);
    codes += chunks * Codes::kBytes;

    const Simd::Floats scale = scale_of<Codes>(p, rows, group);
    TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t) {
      TAUTEN_UNROLL for (int c = 1; c < kChains; ++c) dots[t][0] = Simd::add(dots[t][0], dots[t][c]);
      const Simd::Floats factor = Simd::multiply(scale, Simd::splat_float(step[t]));
      y[t] = Simd::fma(Simd::to_float(dots[t][0]), factor, y[t]);
    }
    if (has_shift(p)) {
      const Simd::Floats shift = shift_of<Codes>(p, rows, group, scale);
      TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t)
        y[t] = Simd::fma(shift, Simd::splat_float(step[t] * sum[t]), y[t]);
    }
  }
  TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t) store_block(p, rows.block, token + t, y[t]);
}

// All tokens from `token` on, in tiles of at most `Tokens`.
template <class Codes, int Tokens>
void int8_tokens(const Problem& p, const Rows& rows, int64_t token) {
  for (; p.tokens - token >= Tokens; token += Tokens) int8_tile<Codes, Tokens>(p, rows, token);
  if constexpr (Tokens > 1) int8_tokens<Codes, Tokens / 2>(p, rows, token);
}

// A tile of `count` tokens, at most `Tokens`.
template <class Codes, int Tokens>
void int8_tile_of(const Problem& p, const Rows& rows, int64_t token, int64_t count) {
  if (count == Tokens) return int8_tile<Codes, Tokens>(p, rows, token);
  if constexpr (Tokens > 1) int8_tile_of<Codes, Tokens - 1>(p, rows, token, count);
}

template <class Codes>
void direct_blocks(const Problem& p, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    const Rows rows{block, p.codes + block * p.chunks * Codes::kBytes, nullptr};
    int8_tokens<Codes, Simd::kDirectTokens>(p, rows, 0);
  }
}

template <class Source>
void unpack_block(const Problem& p, int64_t block, float* grid, uint8_t* codes) {
  const typename Source::Block at(p, block);
  const uint8_t* source = p.codes + block * p.chunks * Source::kBytes;
  for (int64_t chunk = 0; chunk < p.chunks; ++chunk, source += Source::kBytes) {
    const Source unpacked(source, at);
    for (int i = 0; i < kQuads; ++i, codes += 64) Simd::store(codes, unpacked[i]);
  }
  for (int64_t group = 0; group < p.groups; ++group, grid += 2 * kBlockRows) {
    const int64_t index = (block * p.groups + group) * kBlockRows;
    const Simd::Floats scale = load_real(p.scale, index, p.half);
    Simd::store_floats(grid, scale);
    if (has_shift(p)) Simd::store_floats(grid + kBlockRows, load_shift(p, index, scale, 0));
  }
}

// Scratch: scales and shifts of a block, then its codes.
template <class Source>
void blocked_blocks(const Problem& p, int64_t begin, int64_t end, float* grid) {
  uint8_t* codes = reinterpret_cast<uint8_t*>(grid + p.groups * 2 * kBlockRows);
  const int64_t bytes = p.chunks * Source::kBytes;
  for (int64_t block = begin; block < end; ++block) {
    unpack_block<Source>(p, block, grid, codes);
    const uint8_t* next = p.codes + (block + 1) * bytes;
    for (int64_t i = 0; i < p.tiles; ++i) {
      // The next block's codes come from memory while this block's are multiplied.
      for (int64_t at = bytes * i / p.tiles; at < bytes * (i + 1) / p.tiles; at += 64)
        __builtin_prefetch(next + at, 0, 2);
      const int64_t token = tile_start(p, i), count = tile_start(p, i + 1) - token;
      int8_tile_of<Unpacked<Source::kSigned>, Simd::kInt8TileTokens>(p, {block, codes, grid},
                                                                     token, count);
    }
  }
}

template <int Bits>
void int8_direct(const Problem& p, int64_t begin, int64_t end) {
  if constexpr (Bits <= 4)
    if (p.book) return direct_blocks<Booked<Bits>>(p, begin, end);
  direct_blocks<Packed<Bits>>(p, begin, end);
}

template <int Bits>
void int8_blocked(const Problem& p, int64_t begin, int64_t end, float* scratch) {
  if constexpr (Bits <= 4)
    if (p.book) return blocked_blocks<Booked<Bits>>(p, begin, end, scratch);
  blocked_blocks<Packed<Bits>>(p, begin, end, scratch);
}

}  // namespace
}  // namespace tauten
