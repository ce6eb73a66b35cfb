// What the library's entry points share: dispatch, scratch memory, products and rows.
#pragma once
#include <cstdint>
#include <memory>

#include "problem.h"

#define TAUTEN_EXPORT extern "C" __attribute__((visibility("default")))

namespace tauten {

constexpr int64_t kBatchTokens = 512;  // more are cut, so that scratch stays in cache

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One allocation cut into arrays that start on cache lines.
class Arena {
 public:
  explicit Arena(int64_t bytes) : memory_(new char[bytes + 64]) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.get());
    next_ = memory_.get() + (-address & 63);
  }
  static int64_t size(int64_t bytes) { return ceil_div(bytes, 64) * 64; }
  template <class T>
  T* take(int64_t count) {
    T* taken = reinterpret_cast<T*>(next_);
    next_ += size(count * sizeof(T));
    return taken;
  }

 private:
  std::unique_ptr<char[]> memory_;
  char* next_;
};

// A weight without tokens, from what the C interface takes.
inline Problem weight_problem(const uint8_t* codes, const void* scale, const void* zero,
                              const uint8_t* book, int zero_kind, int half, int bits, int64_t out,
                              int64_t in, int64_t group_chunks) {
  Problem p{};
  p.codes = codes, p.scale = scale, p.zero = zero, p.book = book;
  p.zero_kind = static_cast<Zero>(zero_kind), p.half = half, p.bits = bits;
  p.out = out, p.in = in, p.blocks = ceil_div(out, kBlockRows);
  p.chunks = ceil_div(in, kChunkColumns), p.group_chunks = group_chunks;
  p.groups = ceil_div(p.chunks, group_chunks);
  return p;
}

// Kernels of instruction set 0 (portable), 1 (AVX2), 2 (AVX-VNNI) or 3 (AVX-512 VNNI); null where
// this processor doesn't run it.
const Kernels* kernels(int isa);

// Products of the same tokens, at most kBatchTokens, with `count` weights that have the same
// columns and groups: the tokens are rounded once, the rows are shared out as if of one weight.
void multiply(Problem* problems, int count, const Kernels& k, bool int8, int threads);

// A row of a weight in float32; `y` is (in,).
void dequantize_row(const Problem& p, int64_t row, float* y);

}  // namespace tauten
