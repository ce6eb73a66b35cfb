// Products of integer and codebook weights with activations kept in float32.
// Part of one instruction set's unit, after its `Simd`.
#pragma once
#include "row_books.h"
#include "weights.h"

namespace tauten {
namespace {

void pad(const Problem& p, int64_t begin, int64_t end) {
  const int64_t size = p.group_chunks * kChunkColumns, width = p.chunks * kChunkColumns;
  for (int64_t token = tile_start(p, begin); token < tile_start(p, end); ++token) {
    const float* x = p.x + token * p.in;
    float* padded = p.padded + token * width;
    __builtin_memcpy(padded, x, p.in * sizeof(float));
    for (int64_t i = p.in; i < width; ++i) padded[i] = 0;
    for (int64_t group = 0; group < p.groups; ++group) {
      const int64_t end_column = (group + 1) * size < p.in ? (group + 1) * size : p.in;
      float total = 0;
      for (int64_t i = group * size; i < end_column; ++i) total += x[i];
      p.total[group * p.tokens + token] = total;
    }
  }
}

// Weights of 16 rows x 32 columns: code - center, of which scale and shift of the group make the
// weight, ...
template <int Bits>
struct Levels {
  static constexpr bool kScaled = true;
  static constexpr int kBytes = 64 * Bits;
  struct Block {
    Block(const Problem&, int64_t) {}
  };
  Simd::Bytes codes[kQuads];
  Levels(const uint8_t* p, const Block&) {
    unpack<Bits>(p, codes);
    if constexpr (Bits < 8 && center(Bits) != 0)
      for (auto& v : codes) v = Simd::subtract(v, Simd::splat(center(Bits)));
  }
  template <int Column>
  Simd::Floats column(int quad) const {
    return Simd::column<Column>(codes[quad]);
  }
};

// Entry of each row's code, of which byte `Column` counts; `entries` are (2**Bits, 16).
template <int Bits, int Column>
inline Simd::Floats choose_entry(const float* entries, Simd::Bytes codes) {
  if constexpr (Bits == 0) {
    return Simd::load_floats(entries);
  } else {
    const Simd::Floats low = choose_entry<Bits - 1, Column>(entries, codes);
    const Simd::Floats high =
        choose_entry<Bits - 1, Column>(entries + (kBlockRows << (Bits - 1)), codes);
    return Simd::choose<8 * Column + Bits - 1>(codes, low, high);
  }
}

// ... or entries of a codebook, which all rows share or each has its own of.
template <int Bits, bool Shared>
struct Entries {
  static constexpr bool kScaled = false;
  static constexpr int kBytes = 64 * Bits;
  struct Block {
    float entries[kBookEntries * (Shared ? 1 : kBlockRows)];  // (16,), or (2**Bits, rows)
    Block(const Problem& p, int64_t block) {
      if constexpr (Shared) {
        __builtin_memcpy(entries, p.entries, sizeof entries);
      } else {
        const float* books = p.entries + block * kBlockRows * kBookEntries;
        for (int64_t code = 0; code < 1 << Bits; ++code)
          for (int64_t row = 0; row < kBlockRows; ++row)
            entries[code * kBlockRows + row] = books[row * kBookEntries + code];
      }
    }
  };
  Simd::Bytes codes[kQuads];
  const float* entries;
  Entries(const uint8_t* p, const Block& at) : entries(at.entries) { unpack<Bits>(p, codes); }
  template <int Column>
  Simd::Floats column(int quad) const {
    if constexpr (Shared) return Simd::entry<Column>(entries, codes[quad]);
    else return choose_entry<Bits, Column>(entries, codes[quad]);
  }
};

// `Tokens` tokens by one block of rows, unpacked in registers.
template <class Source, int Tokens>
void float_tile(const Problem& p, int64_t block, int64_t token) {
  constexpr int kChains = Tokens >= 4 ? 1 : 4 / Tokens;
  const int64_t width = p.chunks * kChunkColumns;
  const uint8_t* source = p.codes + block * p.chunks * Source::kBytes;
  const typename Source::Block at(p, block);
  const float* x = p.padded + token * width;
  Simd::Floats y[Tokens];
  TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t) y[t] = Simd::splat_float(0);

  for (int64_t group = 0, chunk = 0; group < p.groups; ++group) {
    Simd::Floats sums[Tokens][kChains];
    TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t)
      TAUTEN_UNROLL for (int c = 0; c < kChains; ++c) sums[t][c] = Simd::splat_float(0);
    const int64_t end = chunk + p.group_chunks < p.chunks ? chunk + p.group_chunks : p.chunks;
    for (; chunk < end; ++chunk, source += Source::kBytes) {
      for (int i = 0; i < Source::kBytes; i += 64) __builtin_prefetch(source + 4096 + i);
      const Source weights(source, at);
      TAUTEN_UNROLL for (int i = 0; i < kQuads; ++i) {
        const Simd::Floats columns[4] = {
            weights.template column<0>(i), weights.template column<1>(i),
            weights.template column<2>(i), weights.template column<3>(i)};
        TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t)
          TAUTEN_UNROLL for (int k = 0; k < 4; ++k) {
            const float value = x[t * width + chunk * kChunkColumns + 4 * i + k];
            Simd::Floats& sum = sums[t][k % kChains];
            sum = Simd::fma(columns[k], Simd::splat_float(value), sum);
          }
      }
    }

    TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t)
      TAUTEN_UNROLL for (int c = 1; c < kChains; ++c)
        sums[t][0] = Simd::add(sums[t][0], sums[t][c]);
    if constexpr (!Source::kScaled) {
      TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t) y[t] = Simd::add(y[t], sums[t][0]);
      continue;
    }
    const int64_t index = (block * p.groups + group) * kBlockRows;
    const Simd::Floats scale = load_real(p.scale, index, p.half);
    TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t) y[t] = Simd::fma(sums[t][0], scale, y[t]);
    if (has_shift(p)) {
      const Simd::Floats shift = load_shift(p, index, scale, center(p.bits));
      TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t) {
        const float total = p.total[group * p.tokens + token + t];
        y[t] = Simd::fma(shift, Simd::splat_float(total), y[t]);
      }
    }
  }
  TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t) store_block(p, block, token + t, y[t]);
}

template <class Source, int Tokens>
void float_tokens(const Problem& p, int64_t block, int64_t token) {
  for (; p.tokens - token >= Tokens; token += Tokens) float_tile<Source, Tokens>(p, block, token);
  if constexpr (Tokens > 1) float_tokens<Source, Tokens / 2>(p, block, token);
}

template <class Source>
void float_direct_blocks(const Problem& p, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block)
    float_tokens<Source, Simd::kDirectTokens>(p, block, 0);
}

template <int Bits>
void float_direct(const Problem& p, int64_t begin, int64_t end) {
  if constexpr (Bits <= 4)
    if (p.entries)
      return p.shared_entries ? float_direct_blocks<Entries<Bits, true>>(p, begin, end)
                              : row_books_direct<Bits>(p, begin, end);
  float_direct_blocks<Levels<Bits>>(p, begin, end);
}

// Weights of `count` chunks of one block, (columns, 16) float32.
template <class Source>
void dequantize(const Problem& p, int64_t block, int64_t chunk, int64_t count, float* target) {
  const typename Source::Block at(p, block);
  for (const int64_t end = chunk + count; chunk < end; ++chunk) {
    Simd::Floats scale = Simd::splat_float(1), shift = Simd::splat_float(0);
    if constexpr (Source::kScaled) {
      const int64_t index = (block * p.groups + chunk / p.group_chunks) * kBlockRows;
      scale = load_real(p.scale, index, p.half);
      if (has_shift(p)) shift = load_shift(p, index, scale, center(p.bits));
    }
    const Source weights(p.codes + (block * p.chunks + chunk) * Source::kBytes, at);
    const auto store = [&](Simd::Floats column) {
      if constexpr (Source::kScaled) column = Simd::fma(column, scale, shift);
      Simd::store_floats(target, column);
      target += kBlockRows;
    };
    TAUTEN_UNROLL for (int i = 0; i < kQuads; ++i) {
      store(weights.template column<0>(i));
      store(weights.template column<1>(i));
      store(weights.template column<2>(i));
      store(weights.template column<3>(i));
    }
  }
}

constexpr int64_t kSlabStride = kSlabChunks * kChunkColumns * kBlockRows;  // of a block in scratch

// Adds the product of some columns to `sums`, (tokens, 2, 16).
template <int Tokens>
void slab_tile(const float* x, int64_t width, const float* weights, int64_t columns,
               float* sums) {
  Simd::Floats y[Tokens][2];
  TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t)
    TAUTEN_UNROLL for (int b = 0; b < 2; ++b)
      y[t][b] = Simd::load_floats(sums + (2 * t + b) * kBlockRows);
  for (int64_t k = 0; k < columns; ++k) {
    const Simd::Floats first = Simd::load_floats(weights + k * kBlockRows);
    const Simd::Floats second = Simd::load_floats(weights + kSlabStride + k * kBlockRows);
    TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t) {
      const Simd::Floats value = Simd::splat_float(x[t * width + k]);
      y[t][0] = Simd::fma(first, value, y[t][0]);
      y[t][1] = Simd::fma(second, value, y[t][1]);
    }
  }
  TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t)
    TAUTEN_UNROLL for (int b = 0; b < 2; ++b)
      Simd::store_floats(sums + (2 * t + b) * kBlockRows, y[t][b]);
}

// A tile of `count` tokens, at most `Tokens`.
template <int Tokens>
void slab_tile_of(const float* x, int64_t width, const float* weights, int64_t columns,
                  float* sums, int64_t count) {
  if (count == Tokens) return slab_tile<Tokens>(x, width, weights, columns, sums);
  if constexpr (Tokens > 1) slab_tile_of<Tokens - 1>(x, width, weights, columns, sums, count);
}

// Scratch: the weights of a slab of 2 blocks, then (tokens, 2, 16) sums. `fill` writes the weights
// of some chunks of a block, (columns, 16).
template <class Fill>
void slab_blocks(const Problem& p, int64_t begin, int64_t end, float* scratch, Fill fill) {
  const int64_t width = p.chunks * kChunkColumns;
  float* sums = scratch + 2 * kSlabStride;
  for (; begin < end; begin += 2) {
    const int64_t blocks = end - begin < 2 ? 1 : 2;
    for (int64_t i = 0; i < p.tokens * 2 * kBlockRows; ++i) sums[i] = 0;
    for (int64_t chunk = 0; chunk < p.chunks; chunk += kSlabChunks) {
      const int64_t count = p.chunks - chunk < kSlabChunks ? p.chunks - chunk : kSlabChunks;
      for (int64_t b = 0; b < blocks; ++b)
        fill(begin + b, chunk, count, scratch + b * kSlabStride);
      for (int64_t i = 0; i < p.tiles; ++i) {
        const int64_t token = tile_start(p, i), tokens = tile_start(p, i + 1) - token;
        const float* x = p.padded + token * width + chunk * kChunkColumns;
        slab_tile_of<Simd::kTileTokens>(x, width, scratch, count * kChunkColumns,
                                        sums + 2 * token * kBlockRows, tokens);
      }
    }
    for (int64_t token = 0; token < p.tokens; ++token)
      for (int64_t b = 0; b < blocks; ++b)
        store_block(p, begin + b, token, Simd::load_floats(sums + (2 * token + b) * kBlockRows));
  }
}

template <class Source>
void float_blocked_blocks(const Problem& p, int64_t begin, int64_t end, float* scratch) {
  slab_blocks(p, begin, end, scratch,
              [&](int64_t block, int64_t chunk, int64_t count, float* target) {
                dequantize<Source>(p, block, chunk, count, target);
              });
}

template <int Bits>
void float_blocked(const Problem& p, int64_t begin, int64_t end, float* scratch) {
  if constexpr (Bits <= 4)
    if (p.entries)
      return p.shared_entries ? float_blocked_blocks<Entries<Bits, true>>(p, begin, end, scratch)
                              : float_blocked_blocks<Entries<Bits, false>>(p, begin, end, scratch);
  float_blocked_blocks<Levels<Bits>>(p, begin, end, scratch);
}

}  // namespace
}  // namespace tauten
