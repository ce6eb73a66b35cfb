// Products of codebook weights with activations kept in float32, and their C interface.
#include <algorithm>
#include <new>

#include "multiply.h"

// y = x w^T + bias; shapes as in problem.h, which the caller has checked: at most 4 bits. Returns
// 0, 1 where memory ran out, 2 for an unknown `isa`.
TAUTEN_EXPORT int tauten_book_linear(const float* x, int64_t tokens, const uint8_t* codes,
                                     const float* entries, int shared, int bits, int64_t out,
                                     int64_t in, const float* bias, float* y, int isa,
                                     int threads) {
  using namespace tauten;
  const Kernels* k = kernels(isa);
  if (!k) return 2;
  Problem p{};
  p.codes = codes, p.entries = entries, p.shared_entries = shared, p.bits = bits;
  p.out = out, p.in = in, p.blocks = ceil_div(out, kBlockRows);
  p.chunks = ceil_div(in, kChunkColumns), p.group_chunks = p.chunks, p.groups = 1;
  p.bias = bias;
  try {
    for (int64_t begin = 0; begin < tokens; begin += kBatchTokens) {
      p.x = x + begin * in, p.y = y + begin * out;
      p.tokens = std::min(kBatchTokens, tokens - begin);
      multiply(&p, 1, *k, false, threads);
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
