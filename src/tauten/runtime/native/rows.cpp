// Some rows of an interleaved weight in float32: an embedding's look-up.
#include "multiply.h"
#include "simd_portable.h"
#include "threads.h"

namespace tauten {
namespace {

float real_at(const void* p, int64_t index, bool half) {
  return half ? Simd::half_to_float(static_cast<const uint16_t*>(p)[index])
              : static_cast<const float*>(p)[index];
}

// Code of one row and column of a chunk; `p` points at the row's first byte in it.
int code_at(const uint8_t* p, int bits, int64_t column) {
  const int quad = static_cast<int>(column / 4);
  int code = 0, base = 0;
  for (int width = 8; width > 0; width /= 2) {  // planes, widest first
    if (!(bits & width)) continue;
    const int slots = 8 / width;
    const int plane = p[64 * (base + quad / slots) + column % 4] >> (width * (quad % slots));
    code |= (plane & ((1 << width) - 1)) << base;
    base += width;
  }
  return bits == 8 ? code ^ 0x80 : code;  // 8 bits are stored as two's complement
}

// A row of entries of its codebook.
void look_up_row(const Problem& p, const uint8_t* codes, int64_t block, int64_t lane, float* y) {
  const float* entries = p.entries;
  if (!p.shared_entries) entries += (block * kBlockRows + lane) * kBookEntries;
  for (int64_t column = 0; column < p.in; ++column) {
    const uint8_t* chunk = codes + column / kChunkColumns * 64 * p.bits;
    y[column] = entries[code_at(chunk, p.bits, column % kChunkColumns)];
  }
}

}  // namespace

void dequantize_row(const Problem& p, int64_t row, float* y) {
  const int64_t block = row / kBlockRows, lane = row % kBlockRows;
  const uint8_t* codes = p.codes + block * p.chunks * 64 * p.bits + 4 * lane;
  if (p.entries) return look_up_row(p, codes, block, lane, y);
  const float middle = p.bits > 1 ? static_cast<float>(1 << (p.bits - 1)) : 0.5f;
  for (int64_t group = 0; group < p.groups; ++group) {
    const int64_t index = (block * p.groups + group) * kBlockRows + lane;
    const int64_t size = p.group_chunks * kChunkColumns, begin = group * size;
    const int64_t end = begin + size < p.in ? begin + size : p.in;
    const float scale = real_at(p.scale, index, p.half);
    const bool offset = p.zero_kind == Zero::kFloat;
    const float shift = offset ? real_at(p.zero, index, p.half) : 0.0f;
    float zero = offset ? 0.0f : middle;
    if (p.zero_kind == Zero::kInteger) zero = static_cast<const uint8_t*>(p.zero)[index];
    for (int64_t column = begin; column < end; ++column) {
      const uint8_t* chunk = codes + column / kChunkColumns * 64 * p.bits;
      const int code = code_at(chunk, p.bits, column % kChunkColumns);
      y[column] = (static_cast<float>(code) - zero) * scale + shift;
    }
  }
}

}  // namespace tauten

// y[i] = row index[i] of the weight, (count, in); arguments as in `tauten_linear`. Returns 0, or 3
// where an index is out of range.
TAUTEN_EXPORT int tauten_rows(
    const int64_t* index, int64_t count, const uint8_t* codes, const void* scale, const void* zero,
    int zero_kind, int half, int bits, int64_t out, int64_t in, int64_t group_chunks, float* y,
    int threads) {
  using namespace tauten;
  const Problem p = weight_problem(codes, scale, zero, nullptr, zero_kind, half, bits, out, in,
                                   group_chunks);
  for (int64_t i = 0; i < count; ++i)
    if (index[i] < 0 || index[i] >= out) return 3;
  parallel_for(count, 16, threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) dequantize_row(p, index[i], y + i * in);
  });
  return 0;
}
