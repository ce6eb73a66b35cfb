// Reading the weight: codes of a chunk, scale and shift of a group.
// Part of one instruction set's unit, after its `Simd`.
#pragma once
#include "problem.h"

namespace tauten {
namespace {

// One plane: `Width` vectors hold the bits [Base, Base + Width) of the codes of 8 quads.
template <int Width, int Base, int I = 0>
inline void unpack_plane(const uint8_t* p, Simd::Bytes (&codes)[kQuads]) {
  if constexpr (I < kQuads) {
    constexpr int kSlots = 8 / Width;
    constexpr int kShift = Width * (I % kSlots) - Base;
    constexpr uint8_t kMask = static_cast<uint8_t>(((1 << Width) - 1) << Base);
    const Simd::Bytes plane = Simd::load(p + 64 * (I / kSlots));
    if constexpr (Base == 0) codes[I] = Simd::field<kShift>(plane, kMask);
    else codes[I] = Simd::insert<kShift>(codes[I], plane, kMask);
    unpack_plane<Width, Base, I + 1>(p, codes);
  }
}

// Codes of 16 rows x 32 columns, unsigned; 8 bits are two's complement as they are stored.
template <int Bits>
inline void unpack(const uint8_t* p, Simd::Bytes (&codes)[kQuads]) {
  if constexpr (Bits == 8) {
    for (int i = 0; i < kQuads; ++i) codes[i] = Simd::load(p + 64 * i);
  } else {
    constexpr int kAfter4 = Bits & 4, kAfter2 = Bits & 6;
    if constexpr (Bits & 4) unpack_plane<4, 0>(p, codes);
    if constexpr (Bits & 2) unpack_plane<2, kAfter4>(p + 64 * kAfter4, codes);
    if constexpr (Bits & 1) unpack_plane<1, kAfter2>(p + 64 * kAfter2, codes);
  }
}

// Code that both `float` kernels subtract from each code before they convert it.
constexpr int center(int bits) { return bits > 1 ? 1 << (bits - 1) : 0; }

// The integer that `Simd::dot` sees for a code is code - dot_offset(bits).
constexpr int dot_offset(int bits) { return bits == 8 && Simd::kSignedBytes ? 128 : 0; }

// Signed bytes as `Simd::dot` takes them.
inline Simd::Bytes signed_for_dot(Simd::Bytes v) {
  return Simd::kSignedBytes ? v : Simd::subtract(v, Simd::splat(128));
}

inline Simd::Floats load_real(const void* p, int64_t index, bool half) {
  return half ? Simd::load_halves(static_cast<const uint16_t*>(p) + index)
              : Simd::load_floats(static_cast<const float*>(p) + index);
}

// A symmetric grid of 2 bits and more has 0 at its center and needs no shift.
inline bool has_shift(const Problem& p) {
  return p.zero_kind != Zero::kNone || (p.bits == 1 && !p.book);
}

// weight = scale * (code - origin) + shift, for 16 rows of a group.
inline Simd::Floats load_shift(const Problem& p, int64_t index, Simd::Floats scale, int origin) {
  if (p.zero_kind == Zero::kFloat)
    return Simd::fma(scale, Simd::splat_float(origin), load_real(p.zero, index, p.half));
  const Simd::Floats zero = p.zero_kind == Zero::kInteger
                                ? Simd::load_bytes(static_cast<const uint8_t*>(p.zero) + index)
                                : Simd::splat_float(0.5f);  // 1 bit: levels -0.5 and 0.5
  return Simd::multiply(scale, Simd::add(Simd::splat_float(origin),
                                         Simd::multiply(zero, Simd::splat_float(-1))));
}

inline void store_block(const Problem& p, int64_t block, int64_t token, Simd::Floats y) {
  const int64_t row = block * kBlockRows;
  float* target = p.y + token * p.out + row;
  const int64_t count = p.out - row < kBlockRows ? p.out - row : kBlockRows;
  if (count == kBlockRows) {
    if (p.bias) y = Simd::add(y, Simd::load_floats(p.bias + row));
    Simd::store_floats(target, y);
  } else {
    if (p.bias) y = Simd::add(y, Simd::load_some(p.bias + row, count));
    Simd::store_some(target, y, count);
  }
}

}  // namespace
}  // namespace tauten
