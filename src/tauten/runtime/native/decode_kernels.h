// Norms, rotary positions, attention and gates of a decoder.
// Part of one instruction set's unit, after its `Simd`.
#pragma once
#include "decode.h"
#include "problem.h"

namespace tauten {
namespace {

constexpr int64_t kLanes = 16;

// e^x within 2 units in the last place; results stay in the normal range, NaN stays NaN.
inline Simd::Floats exponential(Simd::Floats x) {
  const auto all = Simd::splat_float;
  x = Simd::minimum(all(88.0f), Simd::maximum(all(-87.0f), x));
  // Adding 1.5 * 2^23 rounds to integer into the low bits.
  const Simd::Floats shifted = Simd::fma(x, all(1.44269504f), all(12582912.0f));
  const Simd::Floats whole = Simd::add(shifted, all(-12582912.0f));
  Simd::Floats r = Simd::fma(whole, all(-0.693359375f), x);  // ln 2 in two parts
  r = Simd::fma(whole, all(2.12194440e-4f), r);
  Simd::Floats y = all(1.9875691500e-4f);
  constexpr float kFactors[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                                1.6666665459e-1f, 5.0000001201e-1f, 1.0f,
                                1.0f};
  TAUTEN_UNROLL for (float factor : kFactors) y = Simd::fma(y, r, all(factor));
  // Adds the integer to the exponent; the bits of 1.5 * 2^23 are shifted out.
  const Simd::Ints power = Simd::shift_left<23>(Simd::bits_of(shifted));
  return Simd::float_of_bits(Simd::add(Simd::bits_of(y), power));
}

inline float sum_of_lanes(Simd::Floats v) {
  float lanes[kLanes];
  Simd::store_floats(lanes, v);
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

inline float largest_lane(Simd::Floats v) {
  float lanes[kLanes];
  Simd::store_floats(lanes, v);
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; ++i)
      lanes[i] = lanes[i + width] > lanes[i] ? lanes[i + width] : lanes[i];
  return lanes[0];
}

// y = x / rms(x) * weight; y may be x.
inline void normalize_row(const float* x, const float* weight, int64_t size, float epsilon,
                          float* y) {
  Simd::Floats squares = Simd::splat_float(0);
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const Simd::Floats v = Simd::load_floats(x + i);
    squares = Simd::fma(v, v, squares);
  }
  float sum = sum_of_lanes(squares);
  for (; i < size; ++i) sum += x[i] * x[i];
  const float factor = 1.0f / __builtin_sqrtf(sum / static_cast<float>(size) + epsilon);
  for (i = 0; i < size; ++i) y[i] = weight[i] * (x[i] * factor);
}

void normalize(const Norm& n, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; ++token) {
    float* x = n.x + token * n.size;
    if (n.added) {
      const float* added = n.added + token * n.size;
      for (int64_t i = 0; i < n.size; ++i) x[i] += added[i];
    }
    normalize_row(x, n.weight, n.size, n.epsilon, n.y + token * n.size);
  }
}

inline Simd::Floats gated(Simd::Floats x, Simd::Floats up) {
  const Simd::Floats one = Simd::splat_float(1);
  const Simd::Floats power = exponential(Simd::multiply(x, Simd::splat_float(-1)));
  return Simd::multiply(Simd::divide(x, Simd::add(one, power)), up);
}

void gate(const Gate& g, int64_t begin, int64_t end) {
  float* x = g.x + begin * g.size;
  const float* up = g.up + begin * g.size;
  const int64_t count = (end - begin) * g.size, tail = count % kLanes;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    Simd::store_floats(x + i, gated(Simd::load_floats(x + i), Simd::load_floats(up + i)));
  if (tail)
    Simd::store_some(x + i, gated(Simd::load_some(x + i, tail), Simd::load_some(up + i, tail)), tail);
}

// Normalizes, if the model does, and turns the heads of one token.
inline void turn_heads(const Attention& a, float* x, int64_t heads, const float* weight,
                       int64_t position) {
  const int64_t half = a.head_size / 2;
  const float* cosine = a.cache.cosine + position * half;
  const float* sine = a.cache.sine + position * half;
  for (const float* end = x + heads * a.head_size; x < end; x += a.head_size) {
    if (weight) normalize_row(x, weight, a.head_size, a.epsilon, x);
    for (int64_t i = 0; i < half; ++i) {
      const float first = x[i], second = x[i + half];
      x[i] = first * cosine[i] - second * sine[i];
      x[i + half] = second * cosine[i] + first * sine[i];
    }
  }
}

// Turns queries and keys, and appends keys and values to the cache.
void place(const Attention& a, int64_t begin, int64_t end) {
  const int64_t size = a.head_size, capacity = a.cache.capacity, padded = value_size(size);
  for (int64_t token = begin; token < end; ++token) {
    const int64_t position = a.position + token;
    float* key = a.key + token * a.key_heads * size;
    const float* value = a.value + token * a.key_heads * size;
    turn_heads(a, a.query + token * a.heads * size, a.heads, a.query_norm, position);
    turn_heads(a, key, a.key_heads, a.key_norm, position);
    for (int64_t head = 0; head < a.key_heads; ++head, key += size, value += size) {
      float* keys = a.cache.keys + head * capacity * size + position / kLanes * kLanes * size;
      for (int64_t i = 0; i < size; ++i) keys[i * kLanes + position % kLanes] = key[i];
      float* values = a.cache.values + (head * capacity + position) * padded;
      __builtin_memcpy(values, value, size * sizeof(float));
    }
  }
}

// y[t][0..32) = sum over k of x[t][k] * w[k][0..32), where the second half of a row of w stands
// `second` floats after the first.
template <int Rows>
void outer(const float* x, int64_t x_stride, const float* w, int64_t second, int64_t step,
           int64_t count, float* y, int64_t y_stride) {
  Simd::Floats sums[Rows][2];
  TAUTEN_UNROLL for (int t = 0; t < Rows; ++t) {
    sums[t][0] = Simd::splat_float(0);
    sums[t][1] = Simd::splat_float(0);
  }
  for (int64_t k = 0; k < count; ++k) {
    const Simd::Floats left = Simd::load_floats(w + k * step);
    const Simd::Floats right = Simd::load_floats(w + k * step + second);
    TAUTEN_UNROLL for (int t = 0; t < Rows; ++t) {
      const Simd::Floats value = Simd::splat_float(x[t * x_stride + k]);
      sums[t][0] = Simd::fma(left, value, sums[t][0]);
      sums[t][1] = Simd::fma(right, value, sums[t][1]);
    }
  }
  TAUTEN_UNROLL for (int t = 0; t < Rows; ++t) {
    Simd::store_floats(y + t * y_stride, sums[t][0]);
    Simd::store_floats(y + t * y_stride + kLanes, sums[t][1]);
  }
}

// x[0..count) = e^(x - max), x[count..padded) = 0; returns the sum.
inline float exponentials(float* x, int64_t count, int64_t padded) {
  for (int64_t i = count; i < padded; ++i) x[i] = -__builtin_inff();
  Simd::Floats most = Simd::load_floats(x);
  for (int64_t i = kLanes; i < padded; i += kLanes)
    most = Simd::maximum(most, Simd::load_floats(x + i));
  const Simd::Floats largest = Simd::splat_float(-largest_lane(most));
  Simd::Floats sum = Simd::splat_float(0);
  for (int64_t i = 0; i < padded; i += kLanes) {
    const Simd::Floats power = exponential(Simd::add(Simd::load_floats(x + i), largest));
    Simd::store_floats(x + i, power);
    sum = Simd::add(sum, power);
  }
  for (int64_t i = count; i < padded; ++i) x[i] = 0;  // they were too small to count in the sum
  return sum_of_lanes(sum);
}

// Attention of `Rows` queries from `row` on; queries of a key head are numbered token by token.
template <int Rows>
void attend_tile(const Attention& a, int64_t head, int64_t row, float* scratch) {
  const int64_t size = a.head_size, group = a.heads / a.key_heads, padded = value_size(size);
  const int64_t seen = a.position + (row + Rows - 1) / group + 1;  // positions of the last query
  const int64_t width = (seen + kPairPositions - 1) / kPairPositions * kPairPositions;
  float *queries = scratch, *scores = queries + Rows * size, *results = scores + Rows * width;
  float* targets[Rows];
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(size));
  for (int t = 0; t < Rows; ++t) {
    const int64_t token = (row + t) / group, own = head * group + (row + t) % group;
    targets[t] = a.query + (token * a.heads + own) * size;
    for (int64_t i = 0; i < size; ++i) queries[t * size + i] = targets[t][i] * scale;
  }
  const float* keys = a.cache.keys + head * a.cache.capacity * size;
  for (int64_t i = 0; i < seen; i += kPairPositions)
    outer<Rows>(queries, size, keys + i * size, kLanes * size, kLanes, size, scores + i, width);
  float sums[Rows];
  for (int t = 0; t < Rows; ++t)
    sums[t] = exponentials(scores + t * width, a.position + (row + t) / group + 1, width);
  const float* values = a.cache.values + head * a.cache.capacity * padded;
  for (int64_t i = 0; i < padded; i += kPairPositions)
    outer<Rows>(scores, width, values + i, kLanes, padded, seen, results + i, padded);
  for (int t = 0; t < Rows; ++t)
    for (int64_t i = 0; i < size; ++i) targets[t][i] = results[t * padded + i] / sums[t];
}

template <int Rows>
void attend_rows(const Attention& a, int64_t head, int64_t row, int64_t count, float* scratch) {
  if (count == Rows) return attend_tile<Rows>(a, head, row, scratch);
  if constexpr (Rows > 1) attend_rows<Rows - 1>(a, head, row, count, scratch);
}

void attend(const Attention& a, int64_t begin, int64_t end, float* scratch) {
  const int64_t rows = a.tokens * (a.heads / a.key_heads);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t tile = i % a.tiles, row = tile * rows / a.tiles;
    const int64_t count = (tile + 1) * rows / a.tiles - row;
    attend_rows<Simd::kTileTokens>(a, i / a.tiles, row, count, scratch);
  }
}

}  // namespace
}  // namespace tauten
