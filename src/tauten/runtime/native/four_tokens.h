// 4 bytes of each of 4 tokens in one vector, as the tiles of the int8 kernels hold them.
// Part of one instruction set's unit.
#pragma once
#include <cstdint>

#if defined(__SSSE3__)
#include <immintrin.h>
#endif

namespace tauten {
namespace {

#if defined(__SSSE3__)
struct FourTokens {
  using Bytes = __m128i;  // (token, column)
  using Sums = __m128i;   // int32, one of each token

  // Columns that each hold 4 tokens.
  static Bytes of_columns(const int32_t (&columns)[4]) {
    const __m128i turn = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm_shuffle_epi8(_mm_setr_epi32(columns[0], columns[1], columns[2], columns[3]), turn);
  }
  static Sums zero() { return _mm_setzero_si128(); }
  static Sums add(Sums sums, Bytes v) {
    const __m128i pairs = _mm_maddubs_epi16(_mm_set1_epi8(1), v);
    return _mm_add_epi32(sums, _mm_madd_epi16(pairs, _mm_set1_epi16(1)));
  }
};
#else
struct FourTokens {
  struct Bytes {
    int8_t v[16];
  };
  struct Sums {
    int32_t v[4];
  };
  static Bytes of_columns(const int32_t (&columns)[4]) {
    int8_t source[16];
    __builtin_memcpy(source, columns, 16);
    Bytes turned;
    for (int t = 0; t < 4; ++t)
      for (int i = 0; i < 4; ++i) turned.v[4 * t + i] = source[4 * i + t];
    return turned;
  }
  static Sums zero() { return {}; }
  static Sums add(Sums sums, Bytes v) {
    for (int i = 0; i < 16; ++i) sums.v[i / 4] += v.v[i];
    return sums;
  }
};
#endif

}  // namespace
}  // namespace tauten
