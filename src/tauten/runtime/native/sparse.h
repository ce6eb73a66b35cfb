// A pruned weight of which only the kept values are stored (see formats/sparse.py).
#pragma once
#include <atomic>

#include "problem.h"

namespace tauten {

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};
enum class Values : int32_t { kFloat32, kFloat16, kBfloat16, kCodes };

constexpr int kPairRows = 2;  // rows that share loads of tokens

struct SparseProblem {
  // Sizes, groups, tokens and their scratch. `bits` are of the codes; `scale` is (out, groups);
  // `zero` (out, groups) as scale, or if integer (out, bytes) packed by rows.
  Problem p;

  const uint8_t* mask;    // (out, chunks, 4): bit c of a chunk's 32 is set where column c is kept
  const int64_t* starts;  // (out + 1,) slots of `values`, multiples of 8 for codes
  const void* values;     // (slots,) floats, or planes of packed codes
  Values kind;
  int64_t slots;
  std::atomic<bool>* damaged;  // set where a row's mask keeps other than its slots
};

// Floats that a row's grid and the values of so many columns take in scratch. The packed zeros of a
// row are unpacked where its values go later.
inline int64_t row_floats(const SparseProblem& s, int64_t columns) {
  return 2 * (s.p.groups + 16) + (columns > s.p.groups ? columns : s.p.groups) + 32;
}

}  // namespace tauten
