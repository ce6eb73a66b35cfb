// Float products of few tokens with rows that have a codebook each.
// Part of one instruction set's unit, after its `Simd`.
#pragma once
#include "weights.h"

namespace tauten {
namespace {

// In a plane of `Width` bits: bits below the code of each of 16 columns, in a row's 4 bytes. The
// columns are quads 0 to 3 of a chunk, or quads 4 to 7.
template <int Width>
struct PlaneShifts {
  int32_t of[2][16] = {};
  constexpr PlaneShifts() {
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < 16; ++i)
        of[half][i] = 8 * (i % 4) + Width * ((4 * half + i / 4) % (8 / Width));
  }
};

inline int32_t word_at(const uint8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return word;
}

template <int Width>
inline Simd::Ints row_plane(const uint8_t* p, int half) {
  static constexpr PlaneShifts<Width> kShifts;
  p += 64 * (half * Width / 2);
  const Simd::Ints words = Width == 4 ? Simd::halves(word_at(p), word_at(p + 64))
                                      : Simd::splat_int(word_at(p));
  return Simd::shift_right(words, kShifts.of[half]);
}

// Codes of one row in half a chunk, a lane each. Above their bits lanes hold anything.
template <int Bits>
inline Simd::Ints row_codes(const uint8_t* p, int half) {
  if constexpr (Bits == 3) {
    const Simd::Ints low = Simd::and_bits(row_plane<2>(p, half), Simd::splat_int(3));
    return Simd::add(low, Simd::shift_left<2>(row_plane<1>(p + 2 * 64, half)));
  } else {
    return row_plane<Bits>(p, half);
  }
}

// `Tokens` tokens by one block of rows. Lanes are columns here, not rows: then one instruction
// looks up 16 weights, in the book of their row.
template <int Bits, int Tokens>
void row_books_tile(const Problem& p, int64_t block, int64_t token) {
  constexpr int kRows = 2 * Simd::kDirectTokens / Tokens;  // whose sums registers hold
  const int64_t width = p.chunks * kChunkColumns;
  const uint8_t* codes = p.codes + block * p.chunks * 64 * Bits;
  const float* books = p.entries + block * kBlockRows * kBookEntries;
  float totals[Tokens][kBlockRows];
  for (int64_t row = 0; row < kBlockRows; row += kRows) {
    Simd::Floats sums[kRows][Tokens];
    TAUTEN_UNROLL for (int r = 0; r < kRows; ++r)
      TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t) sums[r][t] = Simd::splat_float(0);
    for (int64_t chunk = 0; chunk < p.chunks; ++chunk) {
      const uint8_t* source = codes + chunk * 64 * Bits;
      for (int i = 0; i < 64 * Bits; i += 64) __builtin_prefetch(source + 4096 + i);
      TAUTEN_UNROLL for (int half = 0; half < 2; ++half) {
        const float* x = p.padded + token * width + chunk * kChunkColumns + 16 * half;
        TAUTEN_UNROLL for (int r = 0; r < kRows; ++r) {
          const Simd::Ints index = row_codes<Bits>(source + 4 * (row + r), half);
          const Simd::Floats w = Simd::pick<Bits>(books + (row + r) * kBookEntries, index);
          TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t)
            sums[r][t] = Simd::fma(w, Simd::load_floats(x + t * width), sums[r][t]);
        }
      }
    }
    TAUTEN_UNROLL for (int r = 0; r < kRows; ++r)
      TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t) totals[t][row + r] = Simd::sum(sums[r][t]);
  }
  for (int t = 0; t < Tokens; ++t) store_block(p, block, token + t, Simd::load_floats(totals[t]));
}

// All tokens from `token` on, in tiles of at most `Tokens`.
template <int Bits, int Tokens>
void row_books_tokens(const Problem& p, int64_t block, int64_t token) {
  for (; p.tokens - token >= Tokens; token += Tokens)
    row_books_tile<Bits, Tokens>(p, block, token);
  if constexpr (Tokens > 1) row_books_tokens<Bits, Tokens / 2>(p, block, token);
}

template <int Bits>
void row_books_direct(const Problem& p, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block)
    row_books_tokens<Bits, Simd::kDirectTokens>(p, block, 0);
}

}  // namespace
}  // namespace tauten
