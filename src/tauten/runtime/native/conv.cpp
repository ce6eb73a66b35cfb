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
  const int64_t* offsets;  // (in,) from there to each column's input
  int64_t positions;       // tokens of one sample
};

// 4 values of each of 4 columns, set in 4 rows. By itself GCC turns it into 8 shuffles of vectors;
// inlined it doesn't.
__attribute__((noinline)) void transpose(const float* source, const int64_t* offsets, float* rows,
                                         int64_t stride) {
  float columns[4][4], values[4][4];
  for (int i = 0; i < 4; ++i) __builtin_memcpy(columns[i], source + offsets[i], 16);
  for (int t = 0; t < 4; ++t)
    for (int i = 0; i < 4; ++i) values[t][i] = columns[i][t];
  for (int t = 0; t < 4; ++t) __builtin_memcpy(rows + t * stride, values[t], 16);
}

// Tokens of the batch from `first` on into `x`, (p.tokens, in).
void gather(const Layout& layout, int64_t first, const Problem& p, float* x, int threads) {
  parallel_for(p.tokens, kTileTokens, threads, [&](int, int64_t begin, int64_t end) {
    const int64_t* starts = layout.starts + first;
    for (int64_t token = begin; token < end;) {
      const float* source = layout.image + starts[token];
      float* row = x + token * p.in;
      const bool neighbours = token + 4 <= end && starts[token + 3] - starts[token] == 3;
      int64_t done = 0;
      if (neighbours)
        for (; done + 4 <= p.in; done += 4)
          transpose(source, layout.offsets + done, row + done, p.in);
      const int64_t count = neighbours ? 4 : 1;
      for (int64_t t = 0; t < count; ++t)
        for (int64_t i = done; i < p.in; ++i) row[t * p.in + i] = source[layout.offsets[i] + t];
      token += count;
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
// gathered a batch at a time: column i of token t is image[starts[t] + offsets[i]]. Returns as
// `tauten_linear`.
TAUTEN_EXPORT int tauten_conv(const float* image, const int64_t* starts, const int64_t* offsets,
                              int64_t tokens, int64_t positions, const uint8_t* codes,
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
  const Layout layout{image, starts, offsets, positions};
  const int64_t batch = std::min(kBatchTokens, tokens);
  try {
    Arena arena(Arena::size(4 * batch * in) + Arena::size(4 * batch * out));
    float* x = arena.take<float>(batch * in);
    p.x = x, p.y = arena.take<float>(batch * out);
    for (int64_t begin = 0; begin < tokens; begin += batch) {
      p.tokens = std::min(batch, tokens - begin);
      gather(layout, begin, p, x, threads);
      multiply(&p, 1, *k, int8 != 0, threads);
      scatter(layout, begin, p, y, threads);
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
