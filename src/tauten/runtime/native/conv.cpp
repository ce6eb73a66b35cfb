// Convolutions as products: each output position is a token, made of the inputs that it sees.
#include <algorithm>
#include <new>

#include "multiply.h"
#include "threads.h"

namespace tauten {
namespace {

constexpr int64_t kTileTokens = 16;  // a cache line of each output channel

// Where the tokens lie in the input, and where their products go.
struct Layout {
  const float* image;
  const int64_t* starts;   // (tokens,) index of a position's first input
  const int64_t* offsets;  // (in / run,) from there to each run of columns
  int64_t run;             // columns whose inputs lie side by side
  int64_t positions;       // tokens of one sample
};

// Tokens of the batch from `first` on into `x`, (p.tokens, in).
template <int64_t Run>
void gather(const Layout& layout, int64_t first, const Problem& p, float* x, int threads) {
  parallel_for(p.tokens, kTileTokens, threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const float* source = layout.image + layout.starts[first + token];
      float* row = x + token * p.in;
      for (int64_t i = 0; i < p.in / Run; ++i)
        __builtin_memcpy(row + i * Run, source + layout.offsets[i], Run * sizeof(float));
    }
  });
}

// p.y, (p.tokens, out), into `y`, (samples, out, positions).
void scatter(const Layout& layout, int64_t first, const Problem& p, float* y, int threads) {
  parallel_for(p.tokens, kTileTokens, threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; tile += kTileTokens) {
      const int64_t count = std::min(kTileTokens, end - tile);
      float* targets[kTileTokens];
      for (int64_t t = 0; t < count; ++t) {
        const int64_t token = first + tile + t, sample = token / layout.positions;
        targets[t] = y + sample * (p.out - 1) * layout.positions + token;
      }
      for (int64_t row = 0; row < p.out; ++row)
        for (int64_t t = 0; t < count; ++t)
          targets[t][row * layout.positions] = p.y[(tile + t) * p.out + row];
    }
  });
}

}  // namespace
}  // namespace tauten

// y (samples, out, positions) = products of a weight, as in `tauten_linear`, with tokens that are
// gathered a batch at a time: columns i * run .. (i + 1) * run of token t lie in `image` from
// starts[t] + offsets[i] on. `run` is 1, 3, 5 or 7 and divides `in`. Returns as `tauten_linear`.
TAUTEN_EXPORT int tauten_conv(const float* image, const int64_t* starts, const int64_t* offsets,
                              int64_t run, int64_t tokens, int64_t positions, const uint8_t* codes,
                              const void* scale, const void* zero, const uint8_t* book,
                              int zero_kind, int half, int bits, int64_t out, int64_t in,
                              int64_t group_chunks, const float* bias, float* y, int int8, int isa,
                              int threads) {
  using namespace tauten;
  const Kernels* k = kernels(isa);
  if (!k) return 2;
  Problem p = weight_problem(codes, scale, zero, book, zero_kind, half, bits, out, in,
                             group_chunks);
  p.bias = bias;
  const Layout layout{image, starts, offsets, run, positions};
  const auto fill = run == 3 ? gather<3> : run == 5 ? gather<5> : run == 7 ? gather<7> : gather<1>;
  const int64_t batch = std::min(kBatchTokens, tokens);
  try {
    Arena arena(Arena::size(4 * batch * in) + Arena::size(4 * batch * out));
    float* x = arena.take<float>(batch * in);
    p.x = x, p.y = arena.take<float>(batch * out);
    for (int64_t begin = 0; begin < tokens; begin += batch) {
      p.tokens = std::min(batch, tokens - begin);
      fill(layout, begin, p, x, threads);
      multiply(&p, 1, *k, int8 != 0, threads);
      scatter(layout, begin, p, y, threads);
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
