// Plain C++ that any compiler takes; loops of fixed length for it to vectorize.
#pragma once
#include "problem.h"

namespace tauten {
namespace {

struct Simd {
  struct Bytes {
    uint8_t at[4 * kBlockRows];
  };
  struct Ints {
    int32_t at[kBlockRows];
  };
  struct Floats {
    float at[kBlockRows];
  };
  struct Quad {
    int8_t at[4];
  };

  static constexpr bool kSignedBytes = true;
  static constexpr int kDirectTokens = 1;
  static constexpr int kTileTokens = 1;

  static Bytes load(const uint8_t* p) {
    Bytes v;
    __builtin_memcpy(v.at, p, sizeof v.at);
    return v;
  }
  static void store(uint8_t* p, const Bytes& v) { __builtin_memcpy(p, v.at, sizeof v.at); }
  static Bytes splat(uint8_t value) {
    Bytes v;
    for (uint8_t& byte : v.at) byte = value;
    return v;
  }
  static Bytes subtract(Bytes a, const Bytes& b) {
    for (int i = 0; i < 4 * kBlockRows; ++i) a.at[i] = static_cast<uint8_t>(a.at[i] - b.at[i]);
    return a;
  }

  // (v >> shift) & mask in each byte; a negative shift is to the left.
  template <int Shift>
  static Bytes field(Bytes v, uint8_t mask) {
    constexpr int kRight = Shift > 0 ? Shift : 0, kLeft = Shift < 0 ? -Shift : 0;
    for (uint8_t& byte : v.at) byte = static_cast<uint8_t>(((byte >> kRight) << kLeft) & mask);
    return v;
  }
  template <int Shift>
  static Bytes insert(Bytes low, const Bytes& v, uint8_t mask) {  // low | field(v)
    const Bytes bits = field<Shift>(v, mask);
    for (int i = 0; i < 4 * kBlockRows; ++i) low.at[i] |= bits.at[i];
    return low;
  }

  static Quad quad(const int8_t* x) { return {{x[0], x[1], x[2], x[3]}}; }
  template <bool Signed>
  static Ints dot(Ints sum, const Bytes& codes, Quad x) {
    for (int i = 0; i < kBlockRows; ++i)
      for (int k = 0; k < 4; ++k) {
        const uint8_t code = codes.at[4 * i + k];
        sum.at[i] += (Signed ? static_cast<int8_t>(code) : static_cast<int>(code)) * x.at[k];
      }
    return sum;
  }

  // Entries of 4 rows' tables: byte 4r..4r+3 of each 16 bytes looks into the same 16 of table r.
  static Bytes lookup(const Bytes (&tables)[4], const Bytes& codes) {
    Bytes v;
    for (int i = 0; i < 4 * kBlockRows; ++i)
      v.at[i] = tables[i / 4 % 4].at[i / 16 * 16 + (codes.at[i] & 15)];
    return v;
  }

  static Ints splat_int(int32_t value) {
    Ints v;
    for (int32_t& lane : v.at) lane = value;
    return v;
  }
  static Ints add(Ints a, const Ints& b) {
    for (int i = 0; i < kBlockRows; ++i) a.at[i] += b.at[i];
    return a;
  }

  // Byte `Column` of each row's 4, as a signed number.
  template <int Column>
  static Floats column(const Bytes& v) {
    Floats f;
    for (int i = 0; i < kBlockRows; ++i) f.at[i] = static_cast<int8_t>(v.at[4 * i + Column]);
    return f;
  }

  static Floats to_float(const Ints& v) {
    Floats f;
    for (int i = 0; i < kBlockRows; ++i) f.at[i] = static_cast<float>(v.at[i]);
    return f;
  }
  static Floats splat_float(float value) {
    Floats f;
    for (float& lane : f.at) lane = value;
    return f;
  }
  static Floats add(Floats a, const Floats& b) {
    for (int i = 0; i < kBlockRows; ++i) a.at[i] += b.at[i];
    return a;
  }
  static Floats multiply(Floats a, const Floats& b) {
    for (int i = 0; i < kBlockRows; ++i) a.at[i] *= b.at[i];
    return a;
  }
  static Floats fma(const Floats& a, const Floats& b, Floats c) {
    for (int i = 0; i < kBlockRows; ++i) c.at[i] += a.at[i] * b.at[i];
    return c;
  }
  static Floats load_floats(const float* p) {
    Floats f;
    __builtin_memcpy(f.at, p, sizeof f.at);
    return f;
  }
  static Floats load_halves(const uint16_t* p) {
    Floats f;
    for (int i = 0; i < kBlockRows; ++i) f.at[i] = half_to_float(p[i]);
    return f;
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
    Floats f;
    for (int i = 0; i < kBlockRows; ++i) f.at[i] = p[i];
    return f;
  }
  static Floats load_some(const float* p, int64_t count) {
    Floats f = {};
    for (int64_t i = 0; i < count; ++i) f.at[i] = p[i];
    return f;
  }
  static void store_floats(float* p, const Floats& v) { __builtin_memcpy(p, v.at, sizeof v.at); }
  static void store_some(float* p, const Floats& v, int64_t count) {
    for (int64_t i = 0; i < count; ++i) p[i] = v.at[i];
  }
};

}  // namespace
}  // namespace tauten
