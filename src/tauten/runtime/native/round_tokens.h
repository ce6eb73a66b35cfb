// Activations rounded to int8, by token and group.
// Part of one instruction set's unit, after its `Simd`.
#pragma once
#include "problem.h"

namespace tauten {
namespace {

// A chunk of a token; the last one is filled up with zeros in `tail`.
inline const float* chunk_of(const Problem& p, int64_t token, int64_t chunk,
                             float (&tail)[kChunkColumns]) {
  const float* x = p.x + token * p.in + chunk * kChunkColumns;
  const int64_t count = p.in - chunk * kChunkColumns;
  if (count >= kChunkColumns) return x;
  for (int64_t i = 0; i < kChunkColumns; ++i) tail[i] = i < count ? x[i] : 0.0f;
  return tail;
}

constexpr int32_t kInfinityBits = 0x7f800000;

// The order of non-negative floats is that of their bits, with infinity and NaN above all.
inline Simd::Ints magnitude_bits(Simd::Floats v) {
  return Simd::and_bits(Simd::bits_of(v), Simd::splat_int(0x7fffffff));
}

// Bits of the largest |x|.
inline int32_t largest_bits(const Problem& p, int64_t token, int64_t begin, int64_t end) {
  float tail[kChunkColumns];
  Simd::Ints largest = Simd::splat_int(0);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const float* x = chunk_of(p, token, chunk, tail);
    for (int64_t i = 0; i < kChunkColumns; i += kBlockRows)
      largest = Simd::maximum(largest, magnitude_bits(Simd::load_floats(x + i)));
  }
  return Simd::largest(largest);
}

// Rounds a chunk to the nearest integers, ties to even, and adds to sums of them. With a fixed step
// they are kept within 127, and `largest` follows the bits of |x|.
template <bool Fixed>
inline void round_chunk(const float* x, float inverse, int8_t (&rounded)[kChunkColumns],
                        Simd::Ints& sum, Simd::Ints& largest) {
  const Simd::Floats magic = Simd::splat_float(12582912.0f);  // 1.5 * 2^23: integers in the low bits
  for (int64_t i = 0; i < kChunkColumns; i += kBlockRows) {
    const Simd::Floats values = Simd::load_floats(x + i);
    Simd::Floats scaled = Simd::multiply(values, Simd::splat_float(inverse));
    if constexpr (Fixed) {
      largest = Simd::maximum(largest, magnitude_bits(values));
      scaled = Simd::minimum(Simd::maximum(scaled, Simd::splat_float(-127)), Simd::splat_float(127));
    }
    const Simd::Ints bits = Simd::bits_of(Simd::add(scaled, magic));
    const Simd::Ints whole = Simd::add(bits, Simd::splat_int(-0x4b400000));
    Simd::store_bytes(rounded + i, whole);
    sum = Simd::add(sum, whole);
  }
}

// Rounds a group of a token: x = rounded * step. Its quads stand `quad_step` bytes apart. A group
// that holds NaN or infinity gets a NaN step, so that the token's outputs are NaN; one too small
// for a normal step becomes 0.
template <bool Fixed>
inline void round_group(const Problem& p, int64_t token, int64_t group, int8_t* target,
                        int64_t quad_step) {
  float tail[kChunkColumns];
  int8_t rounded[kChunkColumns];
  const int64_t begin = chunks_before(p, group), end = chunks_before(p, group + 1);
  Simd::Ints sum = Simd::splat_int(0), largest = Simd::splat_int(0);
  int32_t bits = 0;
  float step;
  if constexpr (Fixed) {
    step = *p.fixed_step;
  } else {
    bits = largest_bits(p, token, begin, end);
    __builtin_memcpy(&step, &bits, 4);
    step /= 127.0f;
  }
  const bool usable = bits < kInfinityBits && step >= 1.17549435e-38f;
  const float inverse = usable ? 1.0f / step : 0.0f;
  for (int64_t chunk = begin; chunk < end; ++chunk, target += kQuads * quad_step) {
    if (usable) round_chunk<Fixed>(chunk_of(p, token, chunk, tail), inverse, rounded, sum, largest);
    else __builtin_memset(rounded, 0, sizeof rounded);
    TAUTEN_UNROLL for (int64_t i = 0; i < kQuads; ++i)
      __builtin_memcpy(target + i * quad_step, rounded + 4 * i, 4);
  }
  if constexpr (Fixed) bits = Simd::largest(largest);
  const bool finite = bits < kInfinityBits;
  p.sum[group * p.tokens + token] = Simd::sum(sum);
  p.step[group * p.tokens + token] = !finite ? __builtin_nanf("") : usable ? step : 0.0f;
}

// Tokens of the tiles from `begin` to `end`. The blocked kernels want the quads of a tile's tokens
// side by side, so that a tile is one stream and its tokens never compete for the same cache sets.
template <bool Fixed>
void quantize_tiles(const Problem& p, int64_t begin, int64_t end) {
  const int64_t width = p.chunks * kChunkColumns;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = tile_start(p, i), count = tile_start(p, i + 1) - first;
    const int64_t token_step = p.tiled ? 4 : width, quad_step = p.tiled ? 4 * count : 4;
    for (int64_t group = 0; group < p.groups; ++group) {
      const int64_t quads = chunks_before(p, group) * kQuads;
      int8_t* target = p.rounded + first * width + quads * quad_step;
      for (int64_t t = 0; t < count; ++t)
        round_group<Fixed>(p, first + t, group, target + t * token_step, quad_step);
    }
  }
}

void quantize(const Problem& p, int64_t begin, int64_t end) {
  if (p.fixed_step) quantize_tiles<true>(p, begin, end);
  else quantize_tiles<false>(p, begin, end);
}

}  // namespace
}  // namespace tauten
