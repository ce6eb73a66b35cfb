// Rounding to grids, for solvers. Sums are taken in eight lanes, so that they vectorize and come
// out alike in every instruction set.
#pragma once
#include "problem.h"
#include "solve.h"

namespace tauten {
namespace {

constexpr int kSumLanes = 8;

// The nearest whole number from 0 to `top`, halves to even.
TAUTEN_INLINE float nearest_code(float value, float top) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it leaves no fraction
  value = value < 0.0f ? 0.0f : value;
  value = value > top ? top : value;
  return (value + kShift) - kShift;
}

TAUTEN_INLINE float inverse(float step) { return step == 0.0f ? 0.0f : 1.0f / step; }

void decide_row(const Columns& c, int64_t row) {
  float* value = c.value + row * c.stride;
  float* error = c.error + row * c.width;
  float* slope = c.slope ? c.slope + row * c.width : nullptr;
  for (int64_t j = 0; j < c.width; ++j) {
    const float* local = c.local + j * c.width;
    const int64_t group = row * c.levels.groups + c.group[j];
    const float step = c.levels.step[group], low = c.levels.low[group], before = value[j];
    const float wanted = slope ? before - slope[j] / local[j] : before;
    const float code = nearest_code((wanted - low) * inverse(step), c.levels.top);
    const float level = code * step + low;
    const float moved = slope ? level - before : (before - level) / local[j];
    value[j] = level, error[j] = moved;
    if (slope) {
      for (int64_t k = j + 1; k < c.width; ++k) slope[k] += moved * local[k];
    } else {
      for (int64_t k = j + 1; k < c.width; ++k) value[k] -= moved * local[k];
    }
  }
}

void decide_columns(const Columns& c, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) decide_row(c, row);
}

TAUTEN_INLINE float total(const float* lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// Calls `term(i, lane)` for each column of a group.
template <class Term>
TAUTEN_INLINE void for_lanes(int64_t size, Term term) {
  int64_t i = 0;
  for (; i + kSumLanes <= size; i += kSumLanes) {
    TAUTEN_UNROLL for (int lane = 0; lane < kSumLanes; ++lane) term(i + lane, lane);
  }
  for (int lane = 0; i < size; ++i, ++lane) term(i, lane);
}

// Squared errors of rounding to nearest, (rows, groups).
void cell_errors(const Cells& c, int64_t begin, int64_t end) {
  for (int64_t cell = begin * c.groups; cell < end * c.groups; ++cell) {
    const float* value = c.value + cell * c.size;
    const float* weight = c.weight + cell % c.groups * c.size;
    const float step = c.step[cell], depth = c.depth[cell], factor = inverse(step);
    float lanes[kSumLanes] = {};
    for_lanes(c.size, [&](int64_t i, int lane) {
      const float code = nearest_code((value[i] + depth) * factor + c.middle, c.top) - c.middle;
      const float error = (code * step - depth) - value[i];
      lanes[lane] += error * error * weight[i];
    });
    c.sums[cell] = total(lanes);
  }
}

// Weighted sums of code^2, code and code * value, codes counted from the middle: (rows, groups, 3).
void cell_sums(const Cells& c, int64_t begin, int64_t end) {
  for (int64_t cell = begin * c.groups; cell < end * c.groups; ++cell) {
    const float* value = c.value + cell * c.size;
    const float* weight = c.weight + cell % c.groups * c.size;
    const float depth = c.depth[cell], factor = inverse(c.step[cell]);
    float squares[kSumLanes] = {}, codes[kSumLanes] = {}, products[kSumLanes] = {};
    for_lanes(c.size, [&](int64_t i, int lane) {
      const float code = nearest_code((value[i] + depth) * factor + c.middle, c.top) - c.middle;
      const float weighted = weight[i] * code;
      squares[lane] += weighted * code;
      codes[lane] += weighted;
      products[lane] += weighted * value[i];
    });
    c.sums[3 * cell] = total(squares);
    c.sums[3 * cell + 1] = total(codes);
    c.sums[3 * cell + 2] = total(products);
  }
}

}  // namespace
}  // namespace tauten
