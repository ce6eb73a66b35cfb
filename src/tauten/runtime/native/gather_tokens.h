// Tokens of a convolution, gathered from an image that was rounded before: an input that many
// positions see is rounded once, and a byte of each is moved.
// Part of one instruction set's unit, after its `Simd`.
#pragma once
#include "four_tokens.h"
#include "round_tokens.h"

namespace tauten {
namespace {

constexpr int64_t kNeighbours = 12;  // as many as the largest tile has

// Rounds `count` values to multiples of a step, as `round_group` does; whether all are finite.
bool round_values(const float* x, int64_t count, float step, int8_t* codes) {
  float tail[kChunkColumns];
  int8_t rounded[kChunkColumns];
  Simd::Ints sum = Simd::splat_int(0), largest = Simd::splat_int(0);
  for (int64_t i = 0; i < count; i += kChunkColumns) {
    const int64_t size = count - i < kChunkColumns ? count - i : kChunkColumns;
    const float* values = x + i;
    if (size < kChunkColumns) {
      for (int64_t j = 0; j < kChunkColumns; ++j) tail[j] = j < size ? x[i + j] : 0.0f;
      values = tail;
    }
    round_chunk<true>(values, 1.0f / step, rounded, sum, largest);
    __builtin_memcpy(codes + i, rounded, size);
  }
  return Simd::largest(largest) < kInfinityBits;
}

// `count` tokens, at most 4 * Groups, that lie side by side in the image.
template <int Groups>
void gather_neighbours(const Problem& p, int64_t token, int64_t count, int8_t* target,
                       int64_t token_step, int64_t quad_step) {
  static const int8_t kZeros[16] = {};  // columns that fill up the last chunk
  const int8_t* source = p.seen->image + p.seen->starts[token];
  int64_t quad = 0;
  for (int64_t group = 0; group < p.groups; ++group) {
    FourTokens::Sums sums[Groups];
    for (FourTokens::Sums& sum : sums) sum = FourTokens::zero();
    for (const int64_t end = chunks_before(p, group + 1) * kQuads; quad < end; ++quad) {
      const int64_t left = p.in - 4 * quad, *offsets = p.seen->offsets + 4 * quad;
      const int8_t* columns[4] = {kZeros, kZeros, kZeros, kZeros};
      if (left >= 4)
        for (int i = 0; i < 4; ++i) columns[i] = source + offsets[i];
      else
        for (int64_t i = 0; i < left; ++i) columns[i] = source + offsets[i];
      FourTokens::Bytes v[Groups];
      FourTokens::of_columns(columns, v);
      int8_t* to = target + quad * quad_step;
      for (int g = 0; g < Groups; ++g, to += 4 * token_step) {
        sums[g] = FourTokens::add(sums[g], v[g]);
        if (token_step == 4 && 4 * (g + 1) <= count) {
          __builtin_memcpy(to, &v[g], 16);
        } else {
          int8_t bytes[16];
          __builtin_memcpy(bytes, &v[g], 16);
          for (int64_t t = 0; t < 4 && 4 * g + t < count; ++t)
            __builtin_memcpy(to + t * token_step, bytes + 4 * t, 4);
        }
      }
    }
    int32_t all[4 * Groups];
    __builtin_memcpy(all, sums, sizeof all);
    for (int64_t t = 0; t < count; ++t) {
      p.sum[group * p.tokens + token + t] = all[t];
      p.step[group * p.tokens + token + t] = *p.fixed_step;
    }
  }
}

// As `quantize_tiles`.
void gather_tiles(const Problem& p, int64_t begin, int64_t end) {
  const int64_t width = p.chunks * kChunkColumns, *starts = p.seen->starts;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = tile_start(p, i), last = tile_start(p, i + 1);
    const int64_t token_step = p.tiled ? 4 : width, quad_step = p.tiled ? 4 * (last - first) : 4;
    for (int64_t token = first; token < last;) {
      int64_t count = 1;
      while (count < kNeighbours && token + count < last &&
             starts[token + count] - starts[token] == count)
        ++count;
      int8_t* target = p.rounded + first * width + (token - first) * token_step;
      if (count <= 4) gather_neighbours<1>(p, token, count, target, token_step, quad_step);
      else if (count <= 8) gather_neighbours<2>(p, token, count, target, token_step, quad_step);
      else gather_neighbours<3>(p, token, count, target, token_step, quad_step);
      token += count;
    }
  }
}

// Fills the tokens that the int8 products take.
void fill_tokens(const Problem& p, int64_t begin, int64_t end) {
  if (p.seen) gather_tiles(p, begin, end);
  else quantize(p, begin, end);
}

}  // namespace
}  // namespace tauten
