// What solvers ask of every weight of a matrix: decisions column by column, errors of grids.
#pragma once
#include <cstdint>

namespace tauten {

// Levels step * code + low with codes 0 to `top`, one grid for each row and group of columns.
struct GridLevels {
  const float* step;  // (rows, groups)
  const float* low;   // (rows, groups)
  int64_t groups;
  float top;
};

// Columns of a matrix that are decided in order, each row by itself. A value v of column j becomes
// a level q, and that moves the later columns of the row.
//   Sweep: v is `value`, which takes -(v - q) / local[j, j] * local[j, k] on; `error` is that
//     quotient.
//   Descent: v is value - slope / local[j, j], and `slope` takes (q - value) * local[j, k] on;
//     `error` is q - value.
struct Columns {
  float* value;          // (rows, width), rows `stride` apart; becomes levels
  int64_t stride;
  float* error;          // (rows, width)
  float* slope;          // (rows, width), or null in a sweep
  const float* local;    // (width, width)
  const int64_t* group;  // (width,) of each column
  int64_t width;
  GridLevels levels;
};

// A matrix in groups of columns whose grids are tried: levels step * (code - middle) - depth.
struct Cells {
  const float* value;   // (rows, groups, size)
  const float* weight;  // (groups, size) of squared errors
  const float* step;    // (rows, groups)
  const float* depth;   // (rows, groups)
  int64_t groups, size;
  float middle, top;
  float* sums;  // (rows, groups, 1 or 3)
};

}  // namespace tauten
