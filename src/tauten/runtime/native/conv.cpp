// Convolutions as products: each output position is a token, made of the inputs that it sees.
#include <algorithm>
#include <atomic>
#include <initializer_list>
#include <new>
#include <vector>

#include "multiply.h"
#include "threads.h"

namespace tauten {
namespace {

constexpr int64_t kTileTokens = 16;  // a cache line of each output channel
constexpr int64_t kThreadTokens = 64;  // fewer don't pay for unpacking a weight on each thread
constexpr int64_t kThreadValues = 1 << 14;  // fewer aren't worth waking a thread for

// Depth, height and width; what an image lacks is of size 1 and comes first.
struct Geometry {
  int64_t size[3], before[3], after[3];  // of the image, and zeros at either end
  int64_t kernel[3], stride[3], dilation[3];

  int64_t padded(int d) const { return before[d] + size[d] + after[d]; }
  int64_t span(int d) const { return dilation[d] * (kernel[d] - 1) + 1; }
  int64_t positions(int d) const { return (padded(d) - span(d)) / stride[d] + 1; }
};

constexpr int64_t kMostSize = int64_t{1} << 40;    // of a dimension, so that sums of them count
constexpr int64_t kMostValues = int64_t{1} << 58;  // of an image, so that its bytes count

// Product of sizes, more than `kMostValues` where 64 bits don't hold it or a size is negative.
int64_t product(std::initializer_list<int64_t> sizes) {
  int64_t all = 1;
  for (const int64_t size : sizes)
    if (size < 0 || __builtin_mul_overflow(all, size, &all)) return kMostValues + 1;
  return all;
}

// Whether a kernel lies in a padded image, its steps lead nowhere beyond it, and all offsets count
// in 64 bits.
bool fits(const Geometry& g, int64_t samples, int64_t channels, int64_t out, int64_t in) {
  for (int d = 0; d < 3; ++d) {
    for (const int64_t size : {g.size[d], g.before[d], g.after[d]})
      if (size < 0 || size > kMostSize) return false;
    for (const int64_t size : {g.kernel[d], g.stride[d], g.dilation[d]})
      if (size < 1 || size > kMostSize) return false;
    if (product({g.dilation[d], g.kernel[d] - 1}) >= g.padded(d)) return false;
    if (g.stride[d] > g.padded(d)) return false;
  }
  const int64_t line = ceil_div(g.padded(2), g.stride[2]) * g.stride[2];
  const int64_t image = product({channels, g.padded(0), g.padded(1), line});
  const int64_t seen = product({g.positions(0), g.positions(1), g.positions(2)});
  return product({samples, image}) <= kMostValues && product({samples, seen, out}) <= kMostValues &&
         image <= kMostValues && seen <= kMostValues &&
         product({channels, g.kernel[0], g.kernel[1], g.kernel[2]}) == in;
}

// A padded image, (samples, channels, depth, height, stride, phase): what lies a stride apart in a
// line is stored side by side, so that neighbouring positions always see neighbours.
struct Layout {
  struct Part {  // of a line: every stride-th input from `first` on, and where it goes
    int64_t first, target;
  };
  int64_t channels, phase, line, plane;
  std::vector<Part> parts;
  int64_t positions;             // of one sample
  std::vector<int64_t> starts;   // (tokens,) index of a position's first input
  std::vector<int64_t> offsets;  // (in,) from there to each column's input

  Layout(const Geometry& g, int64_t samples, int64_t channels) : channels(channels) {
    phase = ceil_div(g.padded(2), g.stride[2]), line = phase * g.stride[2];
    plane = g.padded(0) * g.padded(1) * line;
    positions = g.positions(0) * g.positions(1) * g.positions(2);
    // Nothing sees the inputs that a stride leaves out.
    const int64_t stride = g.stride[2], before = g.before[2];
    for (int64_t part = 0; part < std::min(stride, g.span(2)); ++part) {
      const int64_t first = (part - before % stride + stride) % stride;
      parts.push_back({first, in_line(first + before, stride)});
    }
    starts.reserve(samples * positions);
    for (int64_t sample = 0; sample < samples; ++sample)
      for (int64_t z = 0; z < g.positions(0); ++z)
        for (int64_t y = 0; y < g.positions(1); ++y)
          for (int64_t x = 0; x < g.positions(2); ++x)
            starts.push_back(sample * channels * plane +
                             (z * g.stride[0] * g.padded(1) + y * g.stride[1]) * line + x);
    offsets.reserve(channels * g.kernel[0] * g.kernel[1] * g.kernel[2]);
    for (int64_t channel = 0; channel < channels; ++channel)
      for (int64_t z = 0; z < g.kernel[0]; ++z)
        for (int64_t y = 0; y < g.kernel[1]; ++y)
          for (int64_t x = 0; x < g.kernel[2]; ++x)
            offsets.push_back(channel * plane +
                              (z * g.dilation[0] * g.padded(1) + y * g.dilation[1]) * line +
                              in_line(x * g.dilation[2], g.stride[2]));
  }
  int64_t in_line(int64_t x, int64_t stride) const { return x % stride * phase + x / stride; }

  // Whether an image is laid out like this by itself.
  bool is_plain(const Geometry& g) const {
    return g.stride[2] == 1 && plane == g.size[0] * g.size[1] * g.size[2];
  }
};

// A line into its place in a padded image.
template <class T>
void pad_line(const T* source, const Geometry& g, const Layout& layout, T* line) {
  const int64_t stride = g.stride[2], size = g.size[2];
  if (stride == 1) {
    std::copy(source, source + size, line + g.before[2]);
    return;
  }
  for (const Layout::Part& part : layout.parts) {
    T* target = line + part.target;
    for (int64_t x = part.first; x < size; x += stride) *target++ = source[x];
  }
}

// Planes (depth, height, width) into their places in a padded image.
template <class T>
void pad(const T* image, int64_t planes, const Geometry& g, const Layout& layout, T* padded,
         int threads) {
  const int64_t size = g.size[0] * g.size[1] * g.size[2];
  const int64_t grain = std::max<int64_t>(kThreadValues / layout.plane, 1);
  parallel_for(planes, grain, threads, [&](int, int64_t begin, int64_t end) {
    std::fill(padded + begin * layout.plane, padded + end * layout.plane, T(0));
    for (int64_t plane = begin; plane < end; ++plane)
      for (int64_t z = 0; z < g.size[0]; ++z)
        for (int64_t y = 0; y < g.size[1]; ++y) {
          const int64_t row = y + g.before[1];
          if (row % g.stride[1] >= g.span(1)) continue;
          const T* source = image + plane * size + (z * g.size[1] + y) * g.size[2];
          T* target = padded + plane * layout.plane;
          target += ((z + g.before[0]) * g.padded(1) + row) * layout.line;
          pad_line(source, g, layout, target);
        }
  });
}

// `count` values rounded to multiples of a step; whether all are finite.
bool round_image(const float* x, int64_t count, float step, int8_t* codes, const Kernels& k,
                 int threads) {
  std::atomic<bool> finite{true};
  parallel_for(count, kThreadValues, threads, [&](int, int64_t begin, int64_t end) {
    if (!k.round(x + begin, end - begin, step, codes + begin)) finite = false;
  });
  return finite;
}

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
void gather(const float* image, const Layout& layout, int64_t first, const Problem& p, float* x,
            int threads) {
  parallel_for(p.tokens, kTileTokens, threads, [&](int, int64_t begin, int64_t end) {
    const int64_t *starts = layout.starts.data() + first, *offsets = layout.offsets.data();
    for (int64_t token = begin; token < end;) {
      const float* source = image + starts[token];
      float* row = x + token * p.in;
      const bool neighbours = token + 4 <= end && starts[token + 3] - starts[token] == 3;
      int64_t done = 0;
      if (neighbours)
        for (; done + 4 <= p.in; done += 4)
          transpose(source, offsets + done, row + done, p.in);
      const int64_t count = neighbours ? 4 : 1;
      for (int64_t t = 0; t < count; ++t)
        for (int64_t i = done; i < p.in; ++i) row[t * p.in + i] = source[offsets[i] + t];
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
      const float* source = p.y + tile * p.out;
      const int64_t token_starts[4] = {0, p.out, 2 * p.out, 3 * p.out};
      for (int64_t t = 0; t < count;) {
        const bool neighbours = t + 4 <= count && targets[t + 3] - targets[t] == 3;
        int64_t row = 0;
        if (neighbours)
          for (; row + 4 <= p.out; row += 4)
            transpose(source + t * p.out + row, token_starts, targets[t] + row * layout.positions,
                      layout.positions);
        for (const int64_t end = t + (neighbours ? 4 : 1), first_row = row; t < end; ++t)
          for (row = first_row; row < p.out; ++row)
            targets[t][row * layout.positions] = source[t * p.out + row];
      }
    }
  });
}

// Tokens from `begin` on in batches, whose columns are gathered as floats, or read from a rounded
// image.
void convolve(const float* image, const Seen* seen, const Layout& layout, Problem p, float* y,
              const Kernels& k, bool int8, int64_t begin, int64_t end, int threads) {
  const int64_t batch = std::min(kBatchTokens, end - begin);
  Arena arena((seen ? 0 : Arena::size(4 * batch * p.in)) + Arena::size(4 * batch * p.out));
  float* x = seen ? nullptr : arena.take<float>(batch * p.in);
  p.x = x, p.y = arena.take<float>(batch * p.out);
  for (; begin < end; begin += batch) {
    p.tokens = std::min(batch, end - begin);
    Seen part;
    if (seen) part = {seen->image, seen->starts + begin, seen->offsets}, p.seen = &part;
    else gather(image, layout, begin, p, x, threads);
    multiply(&p, 1, k, int8, threads);
    scatter(layout, begin, p, y, threads);
  }
}

// Threads that have enough tokens take their own and meet once; else they share each product.
void convolve(const float* image, const Seen* seen, const Layout& layout, const Problem& p,
              float* y, const Kernels& k, bool int8, int threads) {
  const int64_t tokens = layout.starts.size();
  if (threads == 1 || tokens < threads * kThreadTokens)
    return convolve(image, seen, layout, p, y, k, int8, 0, tokens, threads);
  const int64_t turns = ceil_div(tokens, threads * kBatchTokens);
  const int64_t share = ceil_div(tokens, threads * turns);
  std::atomic<bool> memory{true};
  parallel_for(tokens, share, threads, [&](int, int64_t begin, int64_t end) {
    try {
      convolve(image, seen, layout, p, y, k, int8, begin, end, 1);
    } catch (const std::bad_alloc&) {  // may not leave a thread
      memory = false;
    }
  });
  if (!memory) throw std::bad_alloc();
}

}  // namespace
}  // namespace tauten

// y (samples, out, positions) = products of a weight, as in `tauten_linear`, with what each
// position sees of an image (samples, channels, depth, height, width); `geometry` are the numbers
// of a `Geometry`. Returns as `tauten_linear`, or 5 where these don't fit each other.
TAUTEN_EXPORT int tauten_conv(const float* image, int64_t samples, int64_t channels,
                              const int64_t* geometry, const uint8_t* codes, const void* scale,
                              const void* zero, const uint8_t* book, int zero_kind, int half,
                              int bits, int64_t out, int64_t in, int64_t group_chunks,
                              const float* bias, float* y, const float* step, int int8, int isa,
                              int threads) {
  using namespace tauten;
  const Kernels* k = kernels(isa);
  if (!k) return 2;
  Problem p = weight_problem(codes, scale, zero, book, zero_kind, half, bits, out, in,
                             group_chunks);
  p.bias = bias, p.fixed_step = step;
  Geometry g;
  __builtin_memcpy(&g, geometry, sizeof g);
  if (!fits(g, samples, channels, out, in)) return 5;
  const int64_t planes = samples * channels, values = planes * g.size[0] * g.size[1] * g.size[2];
  try {
    const Layout layout(g, samples, channels);
    const int64_t padded = planes * layout.plane;
    const bool plain = layout.is_plain(g);
    if (int8 && step && *step >= 1.17549435e-38f) {
      const int64_t rounded_size = Arena::size(values + kSeenBeyond);
      Arena arena(rounded_size + (plain ? 0 : Arena::size(padded + kSeenBeyond)));
      int8_t* bytes = arena.take<int8_t>(values + kSeenBeyond);
      // What isn't finite has no byte, and its tokens are to be NaN: the slower way knows.
      if (round_image(image, values, *step, bytes, *k, threads)) {
        if (!plain) {
          const int8_t* rounded = bytes;
          bytes = arena.take<int8_t>(padded + kSeenBeyond);
          pad(rounded, planes, g, layout, bytes, threads);
        }
        const Seen seen{bytes, layout.starts.data(), layout.offsets.data()};
        convolve(nullptr, &seen, layout, p, y, *k, true, threads);
        return 0;
      }
    }
    Arena arena(plain ? 0 : Arena::size(4 * padded));
    if (!plain) {
      float* floats = arena.take<float>(padded);
      pad(image, planes, g, layout, floats, threads);
      image = floats;
    }
    convolve(image, nullptr, layout, p, y, *k, int8 != 0, threads);
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
