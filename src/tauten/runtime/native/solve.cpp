// C interface of the solvers' kernels.
#include "solve.h"

#include "multiply.h"
#include "threads.h"

namespace {
constexpr int64_t kRows = 16;  // that a thread takes at a time
}

// Decides columns as solve.h says; a descent if there is a `slope`. Returns 0, 2 for an unknown
// `isa`, or 3 where a column's group is none of `groups`.
TAUTEN_EXPORT int tauten_decide_columns(
    float* value, int64_t rows, int64_t stride, float* error, float* slope, const float* local,
    const int64_t* group, int64_t width, const float* step, const float* low, int64_t groups,
    float top, int isa, int threads) {
  using namespace tauten;
  const Kernels* k = kernels(isa);
  if (!k) return 2;
  for (int64_t j = 0; j < width; ++j)
    if (group[j] < 0 || group[j] >= groups) return 3;
  const Columns columns{value, stride, error, slope, local, group, width, {step, low, groups, top}};
  parallel_for(rows, kRows, threads, [&](int, int64_t begin, int64_t end) {
    k->decide_columns(columns, begin, end);
  });
  return 0;
}

// Sums over groups of columns: squared errors (rows, groups), or with `codes` the sums (rows,
// groups, 3) of `cell_sums`. Returns as above.
TAUTEN_EXPORT int tauten_cells(
    const float* value, int64_t rows, const float* weight, const float* step, const float* depth,
    int64_t groups, int64_t size, float middle, float top, int codes, float* sums, int isa,
    int threads) {
  using namespace tauten;
  const Kernels* k = kernels(isa);
  if (!k) return 2;
  const Cells cells{value, weight, step, depth, groups, size, middle, top, sums};
  const auto kernel = codes ? k->cell_sums : k->cell_errors;
  parallel_for(rows, kRows, threads,
               [&](int, int64_t begin, int64_t end) { kernel(cells, begin, end); });
  return 0;
}
