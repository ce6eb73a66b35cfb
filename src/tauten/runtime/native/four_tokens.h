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

  // The first 4 * Groups tokens, at most 12, of 4 columns; 16 are read.
  template <int Groups>
  static void of_columns(const int8_t* const (&columns)[4], Bytes (&turned)[Groups]) {
    static_assert(Groups <= 3, "more are not in the first 12");
    __m128i v[4];
    for (int i = 0; i < 4; ++i)
      v[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(columns[i]));
    const __m128i low[2] = {_mm_unpacklo_epi8(v[0], v[1]), _mm_unpacklo_epi8(v[2], v[3])};
    turned[0] = _mm_unpacklo_epi16(low[0], low[1]);
    if constexpr (Groups > 1) turned[1] = _mm_unpackhi_epi16(low[0], low[1]);
    if constexpr (Groups > 2)
      turned[2] = _mm_unpacklo_epi16(_mm_unpackhi_epi8(v[0], v[1]), _mm_unpackhi_epi8(v[2], v[3]));
  }
  // Fewer instructions for 4 tokens alone.
  static void of_columns(const int8_t* const (&columns)[4], Bytes (&turned)[1]) {
    int32_t v[4];
    for (int i = 0; i < 4; ++i) __builtin_memcpy(&v[i], columns[i], 4);
    const __m128i turn = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    turned[0] = _mm_shuffle_epi8(_mm_setr_epi32(v[0], v[1], v[2], v[3]), turn);
  }
  static Sums zero() { return _mm_setzero_si128(); }
  static Sums add(Sums sums, Bytes v) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm_dpbusd_epi32(sums, _mm_set1_epi8(1), v);
#else
    const __m128i pairs = _mm_maddubs_epi16(_mm_set1_epi8(1), v);
    return _mm_add_epi32(sums, _mm_madd_epi16(pairs, _mm_set1_epi16(1)));
#endif
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
  template <int Groups>
  static void of_columns(const int8_t* const (&columns)[4], Bytes (&turned)[Groups]) {
    for (int t = 0; t < 4 * Groups; ++t)
      for (int i = 0; i < 4; ++i) turned[t / 4].v[4 * (t % 4) + i] = columns[i][t];
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
