// Products of integer weights with activations rounded to int8.
// Part of one instruction set's unit, after its `Simd`.
#pragma once
#include "weights.h"

namespace tauten {
namespace {

// Rounds one group of one token: x = rounded * step. A group that holds NaN or infinity gets a
// NaN step, so that the token's outputs are NaN; one too small for a normal step becomes 0.
inline float round_group(const float* x, int64_t count, int64_t padded, int8_t* rounded,
                         int32_t* sum) {
  // The order of non-negative floats is that of their bits, with infinity and NaN above all.
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, x + i, 4);
    bits &= 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  float step;
  __builtin_memcpy(&step, &largest, 4);
  step /= 127.0f;
  const bool finite = largest < 0x7f800000u;
  const bool usable = finite && step >= 1.17549435e-38f;
  const float inverse = usable ? 1.0f / step : 0.0f;
  int32_t total = 0;
  for (int64_t i = 0; i < count && usable; ++i) {
    // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, into the low bits.
    const float shifted = x[i] * inverse + 12582912.0f;
    int32_t bits;
    __builtin_memcpy(&bits, &shifted, 4);
    const int32_t value = bits - 0x4b400000;
    rounded[i] = static_cast<int8_t>(value);
    total += value;
  }
  for (int64_t i = usable ? count : 0; i < padded; ++i) rounded[i] = 0;
  *sum = total;
  return !finite ? __builtin_nanf("") : usable ? step : 0.0f;
}

inline void quantize_token(const Problem& p, int64_t token) {
  const int64_t size = p.group_chunks * kChunkColumns, width = p.chunks * kChunkColumns;
  for (int64_t group = 0; group < p.groups; ++group) {
    const int64_t at = group * size, cell = group * p.tokens + token;
    const int64_t count = p.in - at < size ? p.in - at : size;
    const int64_t padded = width - at < size ? width - at : size;
    p.step[cell] = round_group(p.x + token * p.in + at, count, padded,
                               p.rounded + token * width + at, p.sum + cell);
  }
}

// Rounds tokens and, for the blocked kernels, sets the quads of a tile's tokens side by side, so
// that a tile is one stream and its tokens never compete for the same cache sets.
void quantize(const Problem& p, int64_t begin, int64_t end) {
  const int64_t width = p.chunks * kChunkColumns;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t token = tile_start(p, i), count = tile_start(p, i + 1) - token;
    for (int64_t t = 0; t < count; ++t) quantize_token(p, token + t);
    if (!p.tiled) continue;
    const int8_t* source = p.rounded + token * width;
    int8_t* target = p.tiled + token * width;
    for (int64_t column = 0; column < width; column += 4)
      for (int64_t t = 0; t < count; ++t, target += 4)
        __builtin_memcpy(target, source + t * width + column, 4);
  }
}

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

// `Tokens` tokens by `Blocks` blocks of rows, all columns; `codes` points at the first block.
// All loops but those over groups and chunks are unrolled, so that the arrays are registers.
template <class Codes, int Tokens, int Blocks>
void int8_tile(const Problem& p, const uint8_t* codes, int64_t block, int64_t token) {
  constexpr int kChains = Tokens * Blocks >= 4 ? 1 : 4 / (Tokens * Blocks);  // hide the latency
  const int64_t width = p.chunks * kChunkColumns, stride = p.chunks * Codes::kBytes;
  const int bits = p.book ? 8 : p.bits;
  const int base = dot_offset(bits) - (p.zero_kind == Zero::kNone ? center(bits) : 0);
  const typename Codes::Block at(p, block);
  const int8_t* x = (Codes::kTiled ? p.tiled : p.rounded) + token * width;
  const int64_t token_step = Codes::kTiled ? 4 : width;
  const int64_t quad_step = Codes::kTiled ? 4 * Tokens : 4;
  Simd::Floats y[Tokens][Blocks];
  TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t)
    TAUTEN_UNROLL for (int b = 0; b < Blocks; ++b) y[t][b] = Simd::splat_float(0);

  for (int64_t group = 0, chunk = 0; group < p.groups; ++group) {
    const int32_t* sum = p.sum + group * p.tokens + token;
    const float* step = p.step + group * p.tokens + token;
    Simd::Ints dots[Tokens][Blocks][kChains];
    TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t)
      TAUTEN_UNROLL for (int b = 0; b < Blocks; ++b)
        TAUTEN_UNROLL for (int c = 0; c < kChains; ++c)
          dots[t][b][c] = Simd::splat_int(c ? 0 : base * sum[t]);

    const int64_t end = chunk + p.group_chunks < p.chunks ? chunk + p.group_chunks : p.chunks;
    for (; chunk < end; ++chunk, x += kQuads * quad_step) {
      const Codes first(codes + chunk * Codes::kBytes, at);
      const Codes last(codes + chunk * Codes::kBytes + (Blocks - 1) * stride, at);
      TAUTEN_UNROLL for (int i = 0; i < kQuads; ++i)
        TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t) {
          const Simd::Quad quad = Simd::quad(x + t * token_step + i * quad_step);
          TAUTEN_UNROLL for (int b = 0; b < Blocks; ++b) {
            Simd::Ints& dot = dots[t][b][i % kChains];
            dot = Simd::template dot<Codes::kSigned>(dot, b ? last[i] : first[i], quad);
          }
        }
    }

    TAUTEN_UNROLL for (int b = 0; b < Blocks; ++b) {
      const int64_t index = ((block + b) * p.groups + group) * kBlockRows;
      const Simd::Floats scale = load_real(p.scale, index, p.half);
      TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t) {
        TAUTEN_UNROLL for (int c = 1; c < kChains; ++c)
          dots[t][b][0] = Simd::add(dots[t][b][0], dots[t][b][c]);
        const Simd::Floats factor = Simd::multiply(scale, Simd::splat_float(step[t]));
        y[t][b] = Simd::fma(Simd::to_float(dots[t][b][0]), factor, y[t][b]);
      }
      if (has_shift(p)) {
        const Simd::Floats shift = load_shift(p, index, scale, 0);
        TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t)
          y[t][b] = Simd::fma(shift, Simd::splat_float(step[t] * sum[t]), y[t][b]);
      }
    }
  }
  TAUTEN_UNROLL for (int b = 0; b < Blocks; ++b)
    TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t) store_block(p, block + b, token + t, y[t][b]);
}

// All tokens from `token` on, in tiles of at most `Tokens`.
template <class Codes, int Tokens>
void int8_tokens(const Problem& p, const uint8_t* codes, int64_t block, int64_t token) {
  for (; p.tokens - token >= Tokens; token += Tokens)
    int8_tile<Codes, Tokens, 1>(p, codes, block, token);
  if constexpr (Tokens > 1) int8_tokens<Codes, Tokens / 2>(p, codes, block, token);
}

// A tile of `count` tokens, at most `Tokens`.
template <class Codes, int Tokens, int Blocks>
void int8_tile_of(const Problem& p, const uint8_t* codes, int64_t block, int64_t token,
                  int64_t count) {
  if (count == Tokens) return int8_tile<Codes, Tokens, Blocks>(p, codes, block, token);
  if constexpr (Tokens > 1)
    int8_tile_of<Codes, Tokens - 1, Blocks>(p, codes, block, token, count);
}

template <class Codes>
void direct_blocks(const Problem& p, int64_t begin, int64_t end) {
  const int64_t stride = p.chunks * Codes::kBytes;
  for (int64_t block = begin; block < end; ++block)
    int8_tokens<Codes, Simd::kDirectTokens>(p, p.codes + block * stride, block, 0);
}

template <class Source>
void blocked_blocks(const Problem& p, int64_t begin, int64_t end, uint8_t* scratch) {
  using Codes = Unpacked<Source::kSigned>;
  const int64_t stride = p.chunks * Source::kBytes;
  while (begin < end) {
    const int64_t count = end - begin < kPairBlocks ? 1 : kPairBlocks;
    const uint8_t* source = p.codes + begin * stride;
    for (int64_t b = 0; b < count; ++b) {
      const typename Source::Block at(p, begin + b);
      for (int64_t chunk = b * p.chunks; chunk < (b + 1) * p.chunks; ++chunk) {
        const Source codes(source + chunk * Source::kBytes, at);
        for (int i = 0; i < kQuads; ++i)
          Simd::store(scratch + chunk * Codes::kBytes + 64 * i, codes[i]);
      }
    }
    const int64_t bytes = count * stride;
    for (int64_t i = 0; i < p.tiles; ++i) {
      // The next pair's codes come from memory while this pair's are multiplied.
      for (int64_t at = bytes * i / p.tiles; at < bytes * (i + 1) / p.tiles; at += 64)
        __builtin_prefetch(source + bytes + at, 0, 2);
      const int64_t token = tile_start(p, i), tokens = tile_start(p, i + 1) - token;
      if (count == 1)
        int8_tile_of<Codes, Simd::kTileTokens, 1>(p, scratch, begin, token, tokens);
      else
        int8_tile_of<Codes, Simd::kTileTokens, 2>(p, scratch, begin, token, tokens);
    }
    begin += count;
  }
}

template <int Bits>
void int8_direct(const Problem& p, int64_t begin, int64_t end) {
  if constexpr (Bits <= 4)
    if (p.book) return direct_blocks<Booked<Bits>>(p, begin, end);
  direct_blocks<Packed<Bits>>(p, begin, end);
}

template <int Bits>
void int8_blocked(const Problem& p, int64_t begin, int64_t end, uint8_t* scratch) {
  if constexpr (Bits <= 4)
    if (p.book) return blocked_blocks<Booked<Bits>>(p, begin, end, scratch);
  blocked_blocks<Packed<Bits>>(p, begin, end, scratch);
}

}  // namespace
}  // namespace tauten
