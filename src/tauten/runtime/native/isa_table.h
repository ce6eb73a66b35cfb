// Collects the kernels of one instruction set. All that is included before stands in an anonymous
// namespace: the same templates are compiled with other flags elsewhere, and the linker must
// never merge the copies.
#pragma once
#include "decode_kernels.h"
#include "float_kernels.h"
#include "gather_tokens.h"
#include "int8_kernels.h"
#include "solve_kernels.h"
#include "sparse_kernels.h"

namespace tauten {
namespace {

// Calls `run<bits>` for the bits known at run time only.
#define TAUTEN_BITS(run, ...)                  \
  switch (p.bits) {                            \
    case 1: return run<1>(p, __VA_ARGS__);     \
    case 2: return run<2>(p, __VA_ARGS__);     \
    case 3: return run<3>(p, __VA_ARGS__);     \
    case 4: return run<4>(p, __VA_ARGS__);     \
    case 5: return run<5>(p, __VA_ARGS__);     \
    case 6: return run<6>(p, __VA_ARGS__);     \
    case 7: return run<7>(p, __VA_ARGS__);     \
    default: return run<8>(p, __VA_ARGS__);    \
  }

void any_int8_direct(const Problem& p, int64_t begin, int64_t end) {
  TAUTEN_BITS(int8_direct, begin, end)
}
void any_int8_blocked(const Problem& p, int64_t begin, int64_t end, void* scratch) {
  TAUTEN_BITS(int8_blocked, begin, end, static_cast<float*>(scratch))
}
void any_float_direct(const Problem& p, int64_t begin, int64_t end) {
  TAUTEN_BITS(float_direct, begin, end)
}
void any_float_blocked(const Problem& p, int64_t begin, int64_t end, void* scratch) {
  TAUTEN_BITS(float_blocked, begin, end, static_cast<float*>(scratch))
}
#undef TAUTEN_BITS

constexpr Kernels kKernels = {
    Simd::kInt8TileTokens, Simd::kTileTokens, Simd::kFloatDirectTokens,
    round_values, fill_tokens, pad, any_int8_direct, any_int8_blocked, any_float_direct, any_float_blocked,
    sparse_direct, sparse_blocked,
    Simd::kTileTokens, normalize, place, attend, gate,
    decide_columns, cell_errors, cell_sums,
};

}  // namespace
}  // namespace tauten
