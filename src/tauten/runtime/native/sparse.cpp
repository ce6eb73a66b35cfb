// Products of pruned weights and their C interface.
#include "sparse.h"

#include <algorithm>
#include <new>

#include "multiply.h"
#include "threads.h"

namespace tauten {
namespace {

constexpr int64_t kThreadProducts = 1 << 18;  // fewer aren't worth waking a thread for

// Whether each row's slots lie in `values`, and fit a row's scratch.
bool rows_fit(const SparseProblem& s) {
  const int64_t width = s.p.chunks * kChunkColumns, multiple = s.kind == Values::kCodes ? 8 : 1;
  for (int64_t row = 0; row < s.p.out; ++row) {
    const int64_t begin = s.starts[row], end = s.starts[row + 1];
    if (begin < 0 || begin > end || end > s.slots || end - begin > width) return false;
    if (begin % multiple || end % multiple) return false;
  }
  return true;
}

// Scratch of one thread: results or a slab, then a pair's or a block's grids and values.
int64_t scratch_bytes(const SparseProblem& s, bool direct) {
  const Problem& p = s.p;
  const int64_t columns = (direct ? p.chunks : kSlabChunks) * kChunkColumns;
  const int64_t rows = direct ? kPairRows : kBlockRows;
  const int64_t results = direct ? p.tokens * kBlockRows : slab_floats(p);
  return Arena::size(4 * (results + rows * row_floats(s, columns)));
}

void multiply_sparse(SparseProblem& s, const Kernels& k, int threads) {
  Problem& p = s.p;
  const int64_t width = p.chunks * kChunkColumns, cells = p.tokens * p.groups;
  const int64_t useful = 1 + p.tokens * p.out * p.in / kThreadProducts;
  threads = static_cast<int>(std::min<int64_t>(std::max(threads, 1), useful));
  const bool direct = p.tokens <= k.float_direct_tokens;
  p.tiles = ceil_div(p.tokens, k.float_tile_tokens);
  const int64_t worker_bytes = scratch_bytes(s, direct);
  Arena arena(Arena::size(p.tokens * width * 4) + Arena::size(cells * 4) + threads * worker_bytes);
  p.padded = arena.take<float>(p.tokens * width);
  p.total = arena.take<float>(cells);
  char* scratch = arena.take<char>(threads * worker_bytes);
  parallel_for(p.tiles, 8, threads, [&](int, int64_t begin, int64_t end) { k.pad(p, begin, end); });
  const auto product = direct ? k.sparse_direct : k.sparse_blocked;
  const int64_t share = std::max<int64_t>(p.blocks / (4 * threads), 1);
  parallel_for(p.blocks, ceil_div(share, kPairBlocks) * kPairBlocks, threads,
               [&](int worker, int64_t begin, int64_t end) {
                 product(s, begin, end, reinterpret_cast<float*>(scratch + worker * worker_bytes));
               });
}

}  // namespace
}  // namespace tauten

// y = x w^T + bias; shapes as in sparse.h, which the caller has checked. Returns 0, 1 where memory
// ran out, 2 for an unknown `isa`, 4 where mask, starts and values contradict each other.
TAUTEN_EXPORT int tauten_sparse_linear(
    const float* x, int64_t tokens, const uint8_t* mask, const int64_t* starts, const void* values,
    int kind, int64_t slots, const void* scale, const void* zero, int zero_kind, int half, int bits,
    int64_t out, int64_t in, int64_t group_chunks, const float* bias, float* y, int isa,
    int threads) {
  using namespace tauten;
  const Kernels* k = kernels(isa);
  if (!k) return 2;
  std::atomic<bool> damaged{false};
  SparseProblem s{};
  s.mask = mask, s.starts = starts, s.values = values, s.slots = slots, s.damaged = &damaged;
  s.kind = static_cast<Values>(kind);
  Problem& p = s.p;
  p.scale = scale, p.zero = zero, p.half = half, p.bits = bits, p.bias = bias;
  p.zero_kind = static_cast<Zero>(zero_kind);
  p.out = out, p.in = in, p.blocks = ceil_div(out, kBlockRows);
  p.chunks = ceil_div(in, kChunkColumns), p.group_chunks = group_chunks;
  p.groups = ceil_div(p.chunks, group_chunks);
  if (!rows_fit(s)) return 4;
  try {
    for (int64_t begin = 0; begin < tokens && !damaged; begin += kBatchTokens) {
      p.x = x + begin * in, p.y = y + begin * out;
      p.tokens = std::min(kBatchTokens, tokens - begin);
      multiply_sparse(s, *k, threads);
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return damaged ? 4 : 0;
}
