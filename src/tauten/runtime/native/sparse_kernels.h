// Products of pruned weights with activations kept in float32. A row's kept values are spread over
// their columns, 16 at a time; with few tokens in registers, with many into a dense slab.
// Part of one instruction set's unit, after its `Simd`.
#pragma once
#include "float_kernels.h"
#include "sparse.h"

namespace tauten {
namespace {

// Moves the upper half of each field of `Bits` bits up, until a byte's codes of `Width` bits stand
// in a byte each: plain operations, so that a loop over bytes is vectorized.
template <int Width, int Bits, class Wide>
inline Wide set_apart(Wide v) {
  if constexpr (Bits < Width) {
    return v;
  } else {
    constexpr int kSlots = 8 / Width;
    constexpr Wide kOnes = static_cast<Wide>(~Wide{0});
    constexpr Wide kField = static_cast<Wide>(kOnes >> (8 * kSlots - Bits * kSlots));
    constexpr Wide kKeep = static_cast<Wide>(kOnes / kField * ((1 << Bits) - 1));
    v = static_cast<Wide>((v | v << (Bits * (kSlots - 1))) & kKeep);
    return set_apart<Width, Bits / 2, Wide>(v);
  }
}

template <int Width, class Wide>
inline void add_plane(const uint8_t* plane, int64_t bytes, int base, uint8_t* codes) {
  for (int64_t i = 0; i < bytes; ++i) {
    Wide wide;
    __builtin_memcpy(&wide, codes + i * sizeof(Wide), sizeof(Wide));
    wide = static_cast<Wide>(wide | set_apart<Width, 4, Wide>(plane[i]) << base);
    __builtin_memcpy(codes + i * sizeof(Wide), &wide, sizeof(Wide));
  }
}

// Codes [first, first + count) of `total` that `bits.pack` packed; `first` is a multiple of 8.
// Up to 7 more bytes of `codes` are written.
inline void unpack_codes(const uint8_t* packed, int bits, int64_t total, int64_t first,
                         int64_t count, uint8_t* codes) {
  __builtin_memset(codes, 0, (count + 7) / 8 * 8);
  int base = 0;
  for (int width = 8; width > 0; width /= 2) {  // planes, widest first
    if (!(bits & width)) continue;
    const uint8_t* plane = packed + first / 8 * width;
    const int64_t bytes = (count * width + 7) / 8;
    switch (width) {
      case 8: __builtin_memcpy(codes, plane, bytes); break;
      case 4: add_plane<4, uint16_t>(plane, bytes, base, codes); break;
      case 2: add_plane<2, uint32_t>(plane, bytes, base, codes); break;
      default: add_plane<1, uint64_t>(plane, bytes, base, codes);
    }
    packed += (total * width + 7) / 8;
    base += width;
  }
}

inline void halves_to_floats(const uint16_t* halves, int64_t count, float* floats) {
  for (; count >= 16; count -= 16, halves += 16, floats += 16)
    Simd::store_floats(floats, Simd::load_halves(halves));
  uint16_t rest[16] = {};
  __builtin_memcpy(rest, halves, count * 2);
  Simd::store_some(floats, Simd::load_halves(rest), count);
}

// Slots [first, first + count) as `Value`s, with 16 more behind them that may be read: in place if
// they are there, else in `scratch`. Codes are unpacked to bytes, from a multiple of 8 on.
template <class Value>
inline const Value* row_values(const SparseProblem& s, int64_t first, int64_t count,
                               Value* scratch) {
  if (count == 0) return scratch;  // where no row keeps anything there are no values
  if constexpr (sizeof(Value) == 1) {
    const uint8_t* packed = static_cast<const uint8_t*>(s.values);
    unpack_codes(packed, s.p.bits, s.slots, first, count, scratch);
  } else {
    const Value* values = static_cast<const Value*>(s.values) + first;
    if (first + count + 16 <= s.slots) return values;
    __builtin_memcpy(scratch, values, count * sizeof(Value));
  }
  return scratch;
}

// weight = scale * code + shift of each group in a row; (groups,) each.
inline void decode_grid(const SparseProblem& s, int64_t row, float* scale, float* shift,
                        uint8_t* codes) {
  const Problem& p = s.p;
  const auto reals = [&](const void* source, float* target) {
    if (p.half)
      halves_to_floats(static_cast<const uint16_t*>(source) + row * p.groups, p.groups, target);
    else
      __builtin_memcpy(target, static_cast<const float*>(source) + row * p.groups, p.groups * 4);
  };
  reals(p.scale, scale);
  if (p.zero_kind == Zero::kFloat) return reals(p.zero, shift);
  const float middle = p.bits > 1 ? static_cast<float>(1 << (p.bits - 1)) : 0.5f;
  if (p.zero_kind == Zero::kInteger) {
    int64_t bytes = 0;
    for (int width = 8; width > 0; width /= 2)
      if (p.bits & width) bytes += (p.groups * width + 7) / 8;
    const uint8_t* packed = static_cast<const uint8_t*>(p.zero) + row * bytes;
    unpack_codes(packed, p.bits, p.groups, 0, p.groups, codes);
    for (int64_t group = 0; group < p.groups; ++group) shift[group] = codes[group];
  }
  for (int64_t group = 0; group < p.groups; ++group)
    shift[group] = -scale[group] * (p.zero_kind == Zero::kInteger ? shift[group] : middle);
}

inline uint32_t mask_of(const uint8_t* mask, int64_t chunk) {
  uint32_t columns;
  __builtin_memcpy(&columns, mask + 4 * chunk, 4);
  return columns;
}

inline int64_t kept_in(const uint8_t* mask, int64_t chunk, int64_t end) {
  int64_t kept = 0;
  for (; chunk + 2 <= end; chunk += 2) {
    uint64_t columns;
    __builtin_memcpy(&columns, mask + 4 * chunk, 8);
    kept += __builtin_popcountll(columns);
  }
  return chunk < end ? kept + __builtin_popcount(mask_of(mask, chunk)) : kept;
}

// Slots that a row has for so many kept values.
inline int64_t slots_for(const SparseProblem& s, int64_t kept) {
  return s.kind == Values::kCodes ? (kept + 7) / 8 * 8 : kept;
}

// A row that is ready to be spread; its grid stands in scratch. Only codes have one.
template <class Value>
struct SparseRow {
  static constexpr bool kScaled = sizeof(Value) == 1;
  const uint8_t* mask;
  const Value* values;
  float *scale, *shift;
};

// Weights of 16 columns of a group; moves `values` on behind those that were kept.
template <class Value>
inline Simd::Floats spread(const Value*& values, uint32_t mask, const SparseRow<Value>& row,
                           int64_t group) {
  Simd::Floats kept = Simd::load_kept(values, mask);
  if constexpr (SparseRow<Value>::kScaled)
    kept = Simd::fma(kept, Simd::splat_float(row.scale[group]),
                     Simd::splat_float(row.shift[group]));
  values += __builtin_popcount(mask);
  return Simd::expand(kept, mask);
}

// `Tokens` tokens by a pair of rows: y[16 * t + r]. Leaves `values` behind those that were kept.
template <class Value, int Tokens>
void sparse_dot(const Problem& p, const SparseRow<Value> (&rows)[kPairRows], const float* x,
                float* y, const Value* (&values)[kPairRows]) {
  constexpr int kChains = Tokens < Simd::kDirectTokens ? 2 : 1;
  const int64_t width = p.chunks * kChunkColumns;
  Simd::Floats sums[Tokens][kPairRows][kChains];
  TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t)
    TAUTEN_UNROLL for (int r = 0; r < kPairRows; ++r)
      TAUTEN_UNROLL for (int c = 0; c < kChains; ++c) sums[t][r][c] = Simd::splat_float(0);
  TAUTEN_UNROLL for (int r = 0; r < kPairRows; ++r) values[r] = rows[r].values;
  for (int64_t group = 0, chunk = 0; group < p.groups; ++group) {
    const int64_t end = chunk + p.group_chunks < p.chunks ? chunk + p.group_chunks : p.chunks;
    for (; chunk < end; ++chunk) {
      const uint32_t masks[kPairRows] = {mask_of(rows[0].mask, chunk), mask_of(rows[1].mask, chunk)};
      TAUTEN_UNROLL for (int half = 0; half < 2; ++half) {
        Simd::Floats w[kPairRows];
        TAUTEN_UNROLL for (int r = 0; r < kPairRows; ++r)
          w[r] = spread(values[r], masks[r] >> (16 * half) & 0xffff, rows[r], group);
        TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t) {
          const float* at = x + t * width + chunk * kChunkColumns + 16 * half;
          const Simd::Floats token = Simd::load_floats(at);
          TAUTEN_UNROLL for (int r = 0; r < kPairRows; ++r)
            sums[t][r][half % kChains] = Simd::fma(w[r], token, sums[t][r][half % kChains]);
        }
      }
    }
  }
  TAUTEN_UNROLL for (int t = 0; t < Tokens; ++t)
    TAUTEN_UNROLL for (int r = 0; r < kPairRows; ++r) {
      TAUTEN_UNROLL for (int c = 1; c < kChains; ++c)
        sums[t][r][0] = Simd::add(sums[t][r][0], sums[t][r][c]);
      y[t * kBlockRows + r] = Simd::sum(sums[t][r][0]);
    }
}

template <class Value, int Tokens>
void sparse_tokens(const Problem& p, const SparseRow<Value> (&rows)[kPairRows], int64_t token,
                   float* y, const Value* (&values)[kPairRows]) {
  const int64_t width = p.chunks * kChunkColumns;
  for (; p.tokens - token >= Tokens; token += Tokens)
    sparse_dot<Value, Tokens>(p, rows, p.padded + token * width, y + token * kBlockRows, values);
  if constexpr (Tokens > 1)
    if (token < p.tokens) sparse_tokens<Value, Tokens / 2>(p, rows, token, y, values);
}

// Cuts a thread's scratch into what its rows need, each with values of so many columns.
template <class Value>
struct SparseScratch {
  float* memory;
  int64_t groups, stride;
  SparseScratch(const SparseProblem& s, float* memory, int64_t columns)
      : memory(memory), groups(s.p.groups), stride(row_floats(s, columns)) {}
  float* scale(int64_t r) const { return memory + r * stride; }
  float* shift(int64_t r) const { return scale(r) + groups + 16; }
  Value* values(int64_t r) const { return reinterpret_cast<Value*>(shift(r) + groups + 16); }
};

template <class Value>
SparseRow<Value> grid_row(const SparseProblem& s, int64_t row, const SparseScratch<Value>& scratch,
                          int64_t r) {
  if constexpr (SparseRow<Value>::kScaled)
    decode_grid(s, row, scratch.scale(r), scratch.shift(r), scratch.values(r));
  const uint8_t* mask = s.mask + row * s.p.chunks * 4;
  return {mask, nullptr, scratch.scale(r), scratch.shift(r)};
}

template <class Value>
void sparse_direct_blocks(const SparseProblem& s, int64_t begin, int64_t end, float* memory) {
  const Problem& p = s.p;
  float* results = memory;  // (tokens, 16)
  const SparseScratch<Value> scratch(s, memory + p.tokens * kBlockRows, p.chunks * kChunkColumns);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kBlockRows;
    for (int64_t row = first; row < first + kBlockRows && row < p.out; row += kPairRows) {
      SparseRow<Value> rows[kPairRows];
      const Value* ends[kPairRows];
      for (int r = 0; r < kPairRows; ++r) {
        const int64_t i = row + r < p.out ? row + r : row;  // stands in where there is no other
        const int64_t slots = s.starts[i + 1] - s.starts[i];
        rows[r] = grid_row(s, i, scratch, r);
        // A mask that keeps more than there is would be followed behind the values.
        if (slots_for(s, kept_in(rows[r].mask, 0, p.chunks)) != slots)
          return s.damaged->store(true, std::memory_order_relaxed);
        rows[r].values = row_values(s, s.starts[i], slots, scratch.values(r));
      }
      sparse_tokens<Value, Simd::kDirectTokens>(p, rows, 0, results + row - first, ends);
    }
    for (int64_t token = 0; token < p.tokens; ++token)
      store_block(p, block, token, Simd::load_floats(results + token * kBlockRows));
  }
}

// Values of some chunks of a row; returns where the first one lies.
template <class Value>
const Value* part_values(const SparseProblem& s, int64_t row, int64_t chunk, int64_t end,
                         Value* scratch) {
  const uint8_t* mask = s.mask + row * s.p.chunks * 4;
  const int64_t slots = s.starts[row + 1] - s.starts[row];
  int64_t first = kept_in(mask, 0, chunk), last = first + kept_in(mask, chunk, end);
  if (last > slots || (end == s.p.chunks && slots_for(s, last) != slots)) {
    s.damaged->store(true, std::memory_order_relaxed);
    return scratch;
  }
  const int64_t ahead = sizeof(Value) == 1 ? first % 8 : 0;
  first += s.starts[row] - ahead, last += s.starts[row];
  return row_values(s, first, last - first, scratch) + ahead;
}

// Weights of `count` chunks of one block, (columns, 16) float32.
template <class Value>
void spread_block(const SparseProblem& s, int64_t block, int64_t chunk, int64_t count,
                  float* target, float* memory) {
  const Problem& p = s.p;
  const SparseScratch<Value> scratch(s, memory, kSlabChunks * kChunkColumns);
  const int64_t first = block * kBlockRows;
  const int64_t size = p.out - first < kBlockRows ? p.out - first : kBlockRows;
  SparseRow<Value> rows[kBlockRows];
  for (int64_t r = 0; r < size; ++r) {
    rows[r] = grid_row(s, first + r, scratch, r);
    rows[r].values = part_values(s, first + r, chunk, chunk + count, scratch.values(r));
  }
  float tile[kBlockRows][16] = {};
  for (const int64_t end = chunk + count; chunk < end; ++chunk)
    for (int half = 0; half < 2; ++half, target += 16 * kBlockRows) {
      for (int64_t r = 0; r < size; ++r) {
        const uint32_t mask = mask_of(rows[r].mask, chunk) >> (16 * half) & 0xffff;
        Simd::store_floats(tile[r],
                           spread(rows[r].values, mask, rows[r], chunk / p.group_chunks));
      }
      for (int column = 0; column < 16; ++column)
        for (int r = 0; r < kBlockRows; ++r) target[column * kBlockRows + r] = tile[r][column];
    }
}

template <class Value>
void sparse_blocked_blocks(const SparseProblem& s, int64_t begin, int64_t end, float* scratch) {
  slab_blocks(s.p, begin, end, scratch,
              [&](int64_t block, int64_t chunk, int64_t count, float* target) {
                spread_block<Value>(s, block, chunk, count, target, scratch + slab_floats(s.p));
              });
}

#define TAUTEN_VALUES(run)                                                    \
  switch (s.kind) {                                                           \
    case Values::kFloat32: return run<float>(s, begin, end, scratch);         \
    case Values::kFloat16: return run<Half>(s, begin, end, scratch);          \
    case Values::kBfloat16: return run<Bfloat>(s, begin, end, scratch);       \
    default: return run<uint8_t>(s, begin, end, scratch);                     \
  }
void sparse_direct(const SparseProblem& s, int64_t begin, int64_t end, float* scratch) {
  TAUTEN_VALUES(sparse_direct_blocks)
}
void sparse_blocked(const SparseProblem& s, int64_t begin, int64_t end, float* scratch) {
  TAUTEN_VALUES(sparse_blocked_blocks)
}
#undef TAUTEN_VALUES

}  // namespace
}  // namespace tauten
