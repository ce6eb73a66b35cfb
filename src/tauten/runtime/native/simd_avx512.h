// 512-bit vectors: one register holds 16 rows x 4 columns of codes, or 16 sums.
#pragma once
#include <immintrin.h>

#include "problem.h"
#include "sparse.h"

namespace tauten {
namespace {

struct Simd {
  using Bytes = __m512i;
  using Ints = __m512i;
  using Floats = __m512;
  using Quad = __m512i;  // 4 int8 activations, repeated for each row

  static constexpr bool kSignedBytes = false;  // 8-bit codes enter `dot` unsigned
  static constexpr int kDirectTokens = 8;      // register tile of the direct kernels
  static constexpr int kFloatDirectTokens = 8;
  static constexpr int kTileTokens = 6;        // register tile of `float_blocked`, by a pair
  static constexpr int kInt8TileTokens = 12;   // register tile of `int8_blocked`

  static Bytes load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void store(uint8_t* p, Bytes v) { _mm512_storeu_si512(p, v); }
  static Bytes splat(uint8_t v) { return _mm512_set1_epi8(static_cast<char>(v)); }
  static Bytes subtract(Bytes a, Bytes b) { return _mm512_sub_epi8(a, b); }

  // (v >> shift) & mask in each byte; a negative shift is to the left.
  template <int Shift>
  static Bytes field(Bytes v, uint8_t mask) {
    return _mm512_and_si512(shifted<Shift>(v), splat(mask));
  }
  template <int Shift>
  static Bytes insert(Bytes low, Bytes v, uint8_t mask) {  // low | field(v)
    return _mm512_ternarylogic_epi32(low, shifted<Shift>(v), splat(mask), 0xF8);
  }
  template <int Shift>
  static Bytes shifted(Bytes v) {
    if constexpr (Shift > 0) return _mm512_srli_epi16(v, Shift);
    if constexpr (Shift < 0) return _mm512_slli_epi16(v, -Shift);
    return v;
  }

  static Quad quad(const int8_t* x) {
    int32_t v;
    __builtin_memcpy(&v, x, 4);
    return _mm512_set1_epi32(v);
  }
  template <bool Signed>
  static Ints dot(Ints sum, Bytes codes, Quad x) {
    return _mm512_dpbusd_epi32(sum, codes, x);
  }

  // Entries of 4 rows' tables: byte 4r..4r+3 of each 128-bit lane looks into the lane of table r.
  static Bytes lookup(const Bytes (&tables)[4], Bytes codes) {
    Bytes v = _mm512_shuffle_epi8(tables[0], codes);
    v = _mm512_mask_shuffle_epi8(v, 0x00F000F000F000F0, tables[1], codes);
    v = _mm512_mask_shuffle_epi8(v, 0x0F000F000F000F00, tables[2], codes);
    return _mm512_mask_shuffle_epi8(v, 0xF000F000F000F000, tables[3], codes);
  }

  static Ints splat_int(int32_t v) { return _mm512_set1_epi32(v); }
  static Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }

  // Of floats, the second where either is NaN.
  static Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static Floats minimum(Floats a, Floats b) { return _mm512_min_ps(a, b); }
  static Ints maximum(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
  static int32_t largest(Ints v) { return _mm512_reduce_max_epi32(v); }
  static int32_t sum(Ints v) { return _mm512_reduce_add_epi32(v); }
  static Ints bits_of(Floats v) { return _mm512_castps_si512(v); }
  static Floats float_of_bits(Ints v) { return _mm512_castsi512_ps(v); }
  template <int Shift>
  static Ints shift_left(Ints v) {
    return _mm512_slli_epi32(v, Shift);
  }
  static Ints shift_right(Ints v, const int32_t* counts) {  // zeros come in
    return _mm512_srlv_epi32(v, _mm512_loadu_si512(counts));
  }
  static Ints halves(int32_t low, int32_t high) {  // 8 lanes each
    return _mm512_mask_set1_epi32(_mm512_set1_epi32(low), 0xFF00, high);
  }
  static Ints and_bits(Ints a, Ints b) { return _mm512_and_si512(a, b); }
  static void store_bytes(int8_t* p, Ints v) {  // the low byte of each
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
  }

  // Byte `Column` of each row's 4, as a signed number.
  template <int Column>
  static Floats column(Bytes v) {
    if constexpr (Column < 3) v = _mm512_slli_epi32(v, 24 - 8 * Column);
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(v, 24));
  }

  static Floats to_float(Ints v) { return _mm512_cvtepi32_ps(v); }
  static Floats splat_float(float v) { return _mm512_set1_ps(v); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
  static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
  static Floats load_halves(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Floats load_bytes(const uint8_t* p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(v));
  }
  static Floats load_some(const float* p, int64_t count) {
    return _mm512_maskz_loadu_ps(first(count), p);
  }
  static void store_floats(float* p, Floats v) { _mm512_storeu_ps(p, v); }
  static void store_some(float* p, Floats v, int64_t count) {
    _mm512_mask_storeu_ps(p, first(count), v);
  }
  static __mmask16 first(int64_t count) {
    return static_cast<__mmask16>((1u << count) - 1);
  }

  static float sum(Floats v) { return _mm512_reduce_add_ps(v); }

  // Values from p on go to the lanes whose bit in `mask` is set, in order; the others are 0. What
  // is loaded may be changed lane by lane before it is expanded.
  static Floats load_kept(const float* p, uint32_t) { return load_floats(p); }
  static Floats load_kept(const uint8_t* p, uint32_t) { return load_bytes(p); }
  static Floats load_kept(const Half* p, uint32_t) { return load_halves(&p->bits); }
  static Floats load_kept(const Bfloat* p, uint32_t) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
  }
  static Floats expand(Floats kept, uint32_t mask) {
    return _mm512_maskz_expand_ps(static_cast<__mmask16>(mask), kept);
  }

  // Entries of a table of 16, by the low 4 bits of each index.
  template <int Bits>
  static Floats pick(const float* table, Ints index) {
    return _mm512_permutexvar_ps(index, load_floats(table));
  }
  // Entries of a table of 16; byte `Column` of each row's 4 is its code, below 16.
  template <int Column>
  static Floats entry(const float* table, Bytes codes) {
    return pick<4>(table, _mm512_srli_epi32(codes, 8 * Column));
  }
  // In each row `high` where a bit of its 4 bytes is set, else `low`.
  template <int Bit>
  static Floats choose(Bytes codes, Floats low, Floats high) {
    const __mmask16 set = _mm512_test_epi32_mask(codes, _mm512_set1_epi32(1 << Bit));
    return _mm512_mask_blend_ps(set, low, high);
  }
};

}  // namespace
}  // namespace tauten
