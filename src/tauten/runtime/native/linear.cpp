// Dispatch, products and their C interface.
#include <algorithm>
#include <new>

#include "multiply.h"
#include "threads.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace tauten {
namespace {

constexpr int64_t kDirectTokens = 8;          // up to here `int8_direct` is the faster one
constexpr int64_t kThreadProducts = 1 << 18;  // fewer aren't worth waking a thread for

#if defined(__x86_64__)
bool avx_vnni() {  // older compilers don't know its name
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif

}  // namespace

const Kernels* kernels(int isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (isa == 1 && avx2) return &kAvx2;
  if (isa == 2 && avx2 && avx_vnni()) return kAvxVnni;
  if (isa == 3 && avx2 && __builtin_cpu_supports("avx512vnni") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return &kAvx512;
#endif
  return isa == 0 ? &kPortable : nullptr;
}

namespace {

// Pieces small enough to balance threads, yet long enough to read memory in a stream.
int64_t grain(int64_t blocks, int threads, int64_t multiple) {
  return ceil_div(std::max<int64_t>(blocks / (4 * threads), 1), multiple) * multiple;
}

}  // namespace

void multiply(Problem* problems, int count, const Kernels& k, bool int8, int threads) {
  Problem p = problems[0];  // what only the tokens decide is the same for all
  int64_t blocks = 0;
  for (int i = 0; i < count; ++i) blocks += problems[i].blocks;
  const int64_t width = p.chunks * kChunkColumns, cells = p.tokens * p.groups;
  const int64_t useful = 1 + p.tokens * blocks * kBlockRows * p.in / kThreadProducts;
  threads = static_cast<int>(std::min<int64_t>(std::max(threads, 1), useful));
  const bool direct = p.tokens <= (int8 ? kDirectTokens : k.float_direct_tokens);
  const int64_t tile_tokens = int8 ? k.int8_tile_tokens : k.float_tile_tokens;
  p.tiles = ceil_div(p.tokens, tile_tokens);
  p.tiled = !direct;
  const int64_t worker_bytes = direct ? 0 : Arena::size(blocked_scratch_bytes(p, int8));
  const int64_t token_bytes = Arena::size(p.tokens * width * (int8 ? 1 : 4)) +
                              (int8 ? 2 : 1) * Arena::size(cells * 4);
  Arena arena(token_bytes + threads * worker_bytes);
  if (int8) {
    p.rounded = arena.take<int8_t>(p.tokens * width);
    p.step = arena.take<float>(cells);
    p.sum = arena.take<int32_t>(cells);
  } else {
    p.padded = arena.take<float>(p.tokens * width);
    p.total = arena.take<float>(cells);
  }
  char* scratch = arena.take<char>(threads * worker_bytes);

  const auto prepare = int8 ? k.quantize : k.pad;
  const int64_t tiles = ceil_div(kDirectTokens, tile_tokens);  // too little work to share
  parallel_for(p.tiles, tiles, threads,
               [&](int, int64_t begin, int64_t end) { prepare(p, begin, end); });
  for (int i = 0; i < count; ++i) {
    Problem& other = problems[i];
    other.tiles = p.tiles, other.rounded = p.rounded, other.tiled = p.tiled;
    other.padded = p.padded, other.step = p.step, other.sum = p.sum, other.total = p.total;
  }
  const auto direct_product = int8 ? k.int8_direct : k.float_direct;
  const auto blocked_product = int8 ? k.int8_blocked : k.float_blocked;
  parallel_for(blocks, grain(blocks, threads, direct || int8 ? 1 : kPairBlocks), threads,
               [&](int worker, int64_t begin, int64_t end) {
                 for (int i = 0; i < count && end > 0; ++i) {
                   const int64_t size = problems[i].blocks;
                   const int64_t first = std::max<int64_t>(begin, 0), last = std::min(end, size);
                   begin -= size, end -= size;
                   if (first >= last) continue;
                   if (direct) direct_product(problems[i], first, last);
                   else blocked_product(problems[i], first, last, scratch + worker * worker_bytes);
                 }
               });
}

}  // namespace tauten

// Whether this processor runs instruction set 0 (portable), 1 (AVX2), 2 (AVX-VNNI) or 3 (AVX-512
// VNNI).
TAUTEN_EXPORT int tauten_supports(int isa) { return tauten::kernels(isa) != nullptr; }

// y = x w^T + bias; shapes as in problem.h, which the caller has checked. `group_chunks` is the
// number of chunks that share a scale; a `book` needs at most 4 bits and int8; `step` is the one
// that all tokens are rounded by, or null. Returns 0, 1 where
// memory ran out, 2 for an unknown `isa`.
TAUTEN_EXPORT int tauten_linear(const float* x, int64_t tokens, const uint8_t* codes,
                                const void* scale, const void* zero, const uint8_t* book,
                                int zero_kind, int half, int bits, int64_t out, int64_t in,
                                int64_t group_chunks, const float* bias, float* y, const float* step,
                                int int8, int isa, int threads) {
  using namespace tauten;
  const Kernels* k = kernels(isa);
  if (!k) return 2;
  Problem p = weight_problem(codes, scale, zero, book, zero_kind, half, bits, out, in,
                             group_chunks);
  p.bias = bias, p.fixed_step = step;
  try {
    for (int64_t begin = 0; begin < tokens; begin += kBatchTokens) {
      p.x = x + begin * in, p.y = y + begin * out;
      p.tokens = std::min(kBatchTokens, tokens - begin);
      multiply(&p, 1, *k, int8 != 0, threads);
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
