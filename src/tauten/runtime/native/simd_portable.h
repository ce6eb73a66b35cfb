// Vectors of GCC and Clang, which they lower to whatever the processor has (SSE2, NEON, ...).
#pragma once
#include "problem.h"
#include "sparse.h"

namespace tauten {
namespace {

struct Simd {
  using Bytes = uint8_t __attribute__((vector_size(64)));
  using Shorts = int16_t __attribute__((vector_size(64)));
  using Ints = int32_t __attribute__((vector_size(64)));
  using Floats = float __attribute__((vector_size(64)));
  struct Quad {
    Shorts even, odd;  // activations 0 and 2, or 1 and 3, repeated for each row
  };

  static constexpr bool kSignedBytes = true;
  static constexpr int kDirectTokens = 2;
  static constexpr int kTileTokens = 1;        // register tile of `float_blocked`, by a pair
  static constexpr int kInt8TileTokens = 2;   // register tile of `int8_blocked`
  static constexpr int kFloatDirectTokens = 1 << 30;  // few registers: a tile would live in memory

  template <class Vector>
  static Vector load_as(const void* p) {
    Vector v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static Bytes load(const uint8_t* p) { return load_as<Bytes>(p); }
  static void store(uint8_t* p, Bytes v) { __builtin_memcpy(p, &v, sizeof v); }
  static Bytes splat(uint8_t v) { return Bytes{} + v; }
  static Bytes subtract(Bytes a, Bytes b) { return a - b; }

  // (v >> shift) & mask in each byte; a negative shift is to the left.
  template <int Shift>
  static Bytes field(Bytes v, uint8_t mask) {
    const Shorts wide = reinterpret_cast<Shorts>(v);
    if constexpr (Shift > 0) v = reinterpret_cast<Bytes>(wide >> Shift);
    if constexpr (Shift < 0) v = reinterpret_cast<Bytes>(wide << -Shift);
    return v & splat(mask);
  }
  template <int Shift>
  static Bytes insert(Bytes low, Bytes v, uint8_t mask) {  // low | field(v)
    return low | field<Shift>(v, mask);
  }

  static Quad quad(const int8_t* x) {
    const uint32_t even = static_cast<uint16_t>(x[0]) | static_cast<uint32_t>(x[2]) << 16;
    const uint32_t odd = static_cast<uint16_t>(x[1]) | static_cast<uint32_t>(x[3]) << 16;
    return {reinterpret_cast<Shorts>(splat_int(static_cast<int32_t>(even))),
            reinterpret_cast<Shorts>(splat_int(static_cast<int32_t>(odd)))};
  }
  // Unsigned codes are below 128, so that both kinds are signed bytes. Two products add up to at
  // most 2 * 128 * 127, which int16 holds.
  template <bool Signed>
  static Ints dot(Ints sum, Bytes codes, const Quad& x) {
    const Shorts wide = reinterpret_cast<Shorts>(codes);
    const Shorts pairs = ((wide << 8) >> 8) * x.even + (wide >> 8) * x.odd;
    const Ints both = reinterpret_cast<Ints>(pairs);
    return sum + ((both << 16) >> 16) + (both >> 16);
  }

  // Entries of 4 rows' tables: byte 4r..4r+3 of each 16 bytes looks into the same 16 of table r.
  static Bytes lookup(const Bytes (&tables)[4], Bytes codes) {
    const uint8_t* entries = reinterpret_cast<const uint8_t*>(tables);
    uint8_t v[4 * kBlockRows];
    store(v, codes);
    for (int i = 0; i < 4 * kBlockRows; ++i)
      v[i] = entries[64 * (i / 4 % 4) + i / 16 * 16 + (v[i] & 15)];
    return load(v);
  }

  static Ints splat_int(int32_t v) { return Ints{} + v; }
  static Ints add(Ints a, Ints b) { return a + b; }

  // Of floats, the second where either is NaN.
  static Floats maximum(Floats a, Floats b) { return a > b ? a : b; }
  static Floats minimum(Floats a, Floats b) { return a < b ? a : b; }
  static Ints maximum(Ints a, Ints b) { return a > b ? a : b; }
  static int32_t largest(Ints v) {
    int32_t most = v[0];
    for (int i = 1; i < kBlockRows; ++i) most = v[i] > most ? v[i] : most;
    return most;
  }
  static int32_t sum(Ints v) {
    int32_t all = 0;
    for (int i = 0; i < kBlockRows; ++i) all += v[i];
    return all;
  }
  static Ints bits_of(Floats v) { return reinterpret_cast<Ints>(v); }
  static Floats float_of_bits(Ints v) { return reinterpret_cast<Floats>(v); }
  template <int Shift>
  static Ints shift_left(Ints v) {
    return v << Shift;
  }
  static Ints shift_right(Ints v, const int32_t* counts) {
    for (int i = 0; i < kBlockRows; ++i)
      v[i] = static_cast<int32_t>(static_cast<uint32_t>(v[i]) >> counts[i]);
    return v;
  }
  static Ints halves(int32_t low, int32_t high) {  // 8 lanes each
    Ints v = splat_int(low);
    for (int i = kBlockRows / 2; i < kBlockRows; ++i) v[i] = high;
    return v;
  }
  static Ints and_bits(Ints a, Ints b) { return a & b; }
  static void store_bytes(int8_t* p, Ints v) {  // the low byte of each
    for (int i = 0; i < kBlockRows; ++i) p[i] = static_cast<int8_t>(v[i]);
  }

  // Byte `Column` of each row's 4, as a signed number.
  template <int Column>
  static Floats column(Bytes v) {
    return to_float((reinterpret_cast<Ints>(v) << (24 - 8 * Column)) >> 24);
  }

  static Floats to_float(Ints v) { return __builtin_convertvector(v, Floats); }
  static Floats splat_float(float v) { return Floats{} + v; }
  static Floats add(Floats a, Floats b) { return a + b; }
  static Floats divide(Floats a, Floats b) { return a / b; }
  static Floats multiply(Floats a, Floats b) { return a * b; }
  static Floats fma(Floats a, Floats b, Floats c) { return a * b + c; }
  static Floats load_floats(const float* p) { return load_as<Floats>(p); }
  static Floats load_halves(const uint16_t* p) {
    float v[kBlockRows];
    for (int i = 0; i < kBlockRows; ++i) v[i] = half_to_float(p[i]);
    return load_floats(v);
  }
  static float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t exponent = (half >> 10) & 31u, fraction = half & 0x3ffu;
    float value;
    if (exponent == 0) {  // subnormal: fraction * 2^-24, exact in float32
      value = static_cast<float>(fraction) * 5.9604644775390625e-8f;
    } else {
      const uint32_t widened = exponent == 31 ? 255u : exponent + 112u;
      const uint32_t bits = widened << 23 | fraction << 13;
      __builtin_memcpy(&value, &bits, 4);
    }
    return sign ? -value : value;
  }
  static Floats load_bytes(const uint8_t* p) {
    float v[kBlockRows];
    for (int i = 0; i < kBlockRows; ++i) v[i] = p[i];
    return load_floats(v);
  }
  static Floats load_some(const float* p, int64_t count) {
    float v[kBlockRows] = {};
    for (int64_t i = 0; i < count; ++i) v[i] = p[i];
    return load_floats(v);
  }
  static void store_floats(float* p, Floats v) { __builtin_memcpy(p, &v, sizeof v); }
  static void store_some(float* p, Floats v, int64_t count) {
    for (int64_t i = 0; i < count; ++i) p[i] = v[i];
  }

  static float sum(Floats v) {
    float lanes[kBlockRows];
    store_floats(lanes, v);
    for (int64_t width = kBlockRows / 2; width > 0; width /= 2)
      for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
  }

  // Values from p on go to the lanes whose bit in `mask` is set, in order; the others are 0. What
  // is loaded may be changed lane by lane before it is expanded.
  static Floats load_kept(const float* p, uint32_t) { return load_floats(p); }
  static Floats load_kept(const uint8_t* p, uint32_t) { return load_bytes(p); }
  static Floats load_kept(const Half* p, uint32_t) { return load_halves(&p->bits); }
  static Floats load_kept(const Bfloat* p, uint32_t) {
    uint32_t v[kBlockRows];
    for (int i = 0; i < kBlockRows; ++i) v[i] = static_cast<uint32_t>(p[i].bits) << 16;
    return load_as<Floats>(v);
  }
  static Floats expand(Floats kept, uint32_t mask) {
    float from[kBlockRows], lanes[kBlockRows] = {};
    store_floats(from, kept);
    for (int i = 0, next = 0; i < kBlockRows; ++i)
      if (mask >> i & 1) lanes[i] = from[next++];
    return load_floats(lanes);
  }

  // Entries of a table of 16, by the low 4 bits of each index.
  template <int Bits>
  static Floats pick(const float* table, Ints index) {
    float v[kBlockRows];
    for (int i = 0; i < kBlockRows; ++i) v[i] = table[index[i] & 15];
    return load_floats(v);
  }
  // Entries of a table of 16; byte `Column` of each row's 4 is its code, below 16.
  template <int Column>
  static Floats entry(const float* table, Bytes codes) {
    return pick<4>(table, reinterpret_cast<Ints>(codes) >> (8 * Column));
  }
  // In each row `high` where a bit of its 4 bytes is set, else `low`.
  template <int Bit>
  static Floats choose(Bytes codes, Floats low, Floats high) {
    const Ints set = (reinterpret_cast<Ints>(codes) << (31 - Bit)) >> 31;  // all bits or none
    return reinterpret_cast<Floats>((reinterpret_cast<Ints>(low) & ~set) |
                                    (reinterpret_cast<Ints>(high) & set));
  }
};

}  // namespace
}  // namespace tauten
