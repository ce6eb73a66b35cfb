// 256-bit vectors in pairs, so that one value still holds 16 rows; with AVX-VNNI, where the unit is
// compiled for it, a product of bytes is one instruction.
#pragma once
#include <immintrin.h>

#include "problem.h"
#include "sparse.h"

namespace tauten {
namespace {

// How many bits below each are set, for all bytes.
struct Ranks {
  uint8_t of[256][8] = {};
  constexpr Ranks() {
    for (int mask = 0; mask < 256; ++mask)
      for (int bit = 0, rank = 0; bit < 8; rank += mask >> bit++ & 1)
        of[mask][bit] = static_cast<uint8_t>(rank);
  }
};

struct Simd {
  struct Bytes {
    __m256i low, high;
  };
  struct Floats {
    __m256 low, high;
  };
  using Ints = Bytes;
  using Quad = __m256i;

#if defined(__AVXVNNI__)
  static constexpr bool kSignedBytes = false;
#else
  static constexpr bool kSignedBytes = true;  // products of unsigned bytes above 127 saturate
#endif
  static constexpr int kDirectTokens = 2;
  static constexpr int kFloatDirectTokens = 8;
  static constexpr int kTileTokens = 2;        // register tile of `float_blocked`, by a pair
  static constexpr int kInt8TileTokens = 4;   // register tile of `int8_blocked`

  static Bytes load(const uint8_t* p) { return {load32(p), load32(p + 32)}; }
  static void store(uint8_t* p, Bytes v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), v.high);
  }
  static __m256i load32(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Bytes splat(uint8_t v) {
    const __m256i all = _mm256_set1_epi8(static_cast<char>(v));
    return {all, all};
  }
  static Bytes subtract(Bytes a, Bytes b) {
    return {_mm256_sub_epi8(a.low, b.low), _mm256_sub_epi8(a.high, b.high)};
  }

  // (v >> shift) & mask in each byte; a negative shift is to the left.
  template <int Shift>
  static Bytes field(Bytes v, uint8_t mask) {
    const __m256i keep = _mm256_set1_epi8(static_cast<char>(mask));
    return {_mm256_and_si256(shifted<Shift>(v.low), keep),
            _mm256_and_si256(shifted<Shift>(v.high), keep)};
  }
  template <int Shift>
  static Bytes insert(Bytes low, Bytes v, uint8_t mask) {  // low | field(v)
    const Bytes bits = field<Shift>(v, mask);
    return {_mm256_or_si256(low.low, bits.low), _mm256_or_si256(low.high, bits.high)};
  }
  template <int Shift>
  static __m256i shifted(__m256i v) {
    if constexpr (Shift > 0) return _mm256_srli_epi16(v, Shift);
    if constexpr (Shift < 0) return _mm256_slli_epi16(v, -Shift);
    return v;
  }

  static Quad quad(const int8_t* x) {
    int32_t v;
    __builtin_memcpy(&v, x, 4);
    return _mm256_set1_epi32(v);
  }
  // Codes are unsigned below 128, or signed. Neighbours' products add up to at most
  // 2 * 127 * 127 or 2 * 128 * 127, which int16 holds.
  template <bool Signed>
  static Ints dot(Ints sum, Bytes codes, Quad x) {
    return {dot8<Signed>(sum.low, codes.low, x), dot8<Signed>(sum.high, codes.high, x)};
  }
  template <bool Signed>
  static __m256i dot8(__m256i sum, __m256i codes, __m256i x) {
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sum, codes, x);
#else
    if constexpr (Signed) {
      x = _mm256_sign_epi8(x, codes);
      codes = _mm256_abs_epi8(codes);
    }
    const __m256i pairs = _mm256_maddubs_epi16(codes, x);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
  }

  // Entries of 4 rows' tables: byte 4r..4r+3 of each 128-bit lane looks into the lane of table r.
  static Bytes lookup(const Bytes (&tables)[4], Bytes codes) {
    return {lookup32(tables[0].low, tables[1].low, tables[2].low, tables[3].low, codes.low),
            lookup32(tables[0].high, tables[1].high, tables[2].high, tables[3].high, codes.high)};
  }
  static __m256i lookup32(__m256i a, __m256i b, __m256i c, __m256i d, __m256i codes) {
    a = _mm256_shuffle_epi8(a, codes), b = _mm256_shuffle_epi8(b, codes);
    c = _mm256_shuffle_epi8(c, codes), d = _mm256_shuffle_epi8(d, codes);
    return _mm256_blend_epi32(_mm256_blend_epi32(a, b, 0x22), _mm256_blend_epi32(c, d, 0x88), 0xCC);
  }

  static Ints splat_int(int32_t v) {
    const __m256i all = _mm256_set1_epi32(v);
    return {all, all};
  }
  static Ints add(Ints a, Ints b) {
    return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
  }

  // Of floats, the second where either is NaN.
  static Floats maximum(Floats a, Floats b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
  }
  static Floats minimum(Floats a, Floats b) {
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
  }
  static Ints maximum(Ints a, Ints b) {
    return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)};
  }
  static int32_t largest(Ints v) {
    const __m256i half = _mm256_max_epi32(v.low, v.high);
    __m128i all = _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    all = _mm_max_epi32(all, _mm_shuffle_epi32(all, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(all, _mm_shuffle_epi32(all, 0xB1)));
  }
  static int32_t sum(Ints v) {
    const __m256i half = _mm256_add_epi32(v.low, v.high);
    __m128i all = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    all = _mm_add_epi32(all, _mm_shuffle_epi32(all, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(all, _mm_shuffle_epi32(all, 0xB1)));
  }
  static Ints bits_of(Floats v) {
    return {_mm256_castps_si256(v.low), _mm256_castps_si256(v.high)};
  }
  static Floats float_of_bits(Ints v) {
    return {_mm256_castsi256_ps(v.low), _mm256_castsi256_ps(v.high)};
  }
  template <int Shift>
  static Ints shift_left(Ints v) {
    return {_mm256_slli_epi32(v.low, Shift), _mm256_slli_epi32(v.high, Shift)};
  }
  static Ints shift_right(Ints v, const int32_t* counts) {  // zeros come in
    const __m256i* both = reinterpret_cast<const __m256i*>(counts);
    return {_mm256_srlv_epi32(v.low, _mm256_loadu_si256(both)),
            _mm256_srlv_epi32(v.high, _mm256_loadu_si256(both + 1))};
  }
  static Ints halves(int32_t low, int32_t high) {  // 8 lanes each
    return {_mm256_set1_epi32(low), _mm256_set1_epi32(high)};
  }
  static Ints and_bits(Ints a, Ints b) {
    return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
  }
  static void store_bytes(int8_t* p, Ints v) {  // the low byte of each, which are in its range
    const __m256i pairs = _mm256_packs_epi32(v.low, v.high);
    const __m256i order = _mm256_permute4x64_epi64(pairs, 0xD8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(order),
                                          _mm256_extracti128_si256(order, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  }

  // Byte `Column` of each row's 4, as a signed number.
  template <int Column>
  static Floats column(Bytes v) {
    return to_float({signed_byte<Column>(v.low), signed_byte<Column>(v.high)});
  }
  template <int Column>
  static __m256i signed_byte(__m256i v) {
    if constexpr (Column < 3) v = _mm256_slli_epi32(v, 24 - 8 * Column);
    return _mm256_srai_epi32(v, 24);
  }

  static Floats to_float(Ints v) {
    return {_mm256_cvtepi32_ps(v.low), _mm256_cvtepi32_ps(v.high)};
  }
  static Floats splat_float(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
  static Floats add(Floats a, Floats b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
  }
  static Floats divide(Floats a, Floats b) {
    return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
  }
  static Floats multiply(Floats a, Floats b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  static Floats fma(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static Floats load_floats(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static Floats load_halves(const uint16_t* p) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
  }
  static Floats load_bytes(const uint8_t* p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return to_float({_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))});
  }
  static Floats load_some(const float* p, int64_t count) {
    float v[kBlockRows] = {};
    for (int64_t i = 0; i < count; ++i) v[i] = p[i];
    return load_floats(v);
  }
  static void store_floats(float* p, Floats v) {
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
  }
  static void store_some(float* p, Floats v, int64_t count) {
    float all[kBlockRows];
    store_floats(all, v);
    for (int64_t i = 0; i < count; ++i) p[i] = all[i];
  }

  static float sum(Floats v) {
    const __m256 eight = _mm256_add_ps(v.low, v.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }

  // Values from p on go to the lanes whose bit in `mask` is set, in order; the others are 0. What
  // is loaded may be changed lane by lane before it is expanded.
  template <class Value>
  static Floats load_kept(const Value* p, uint32_t mask) {
    return {load8(p), load8(p + __builtin_popcount(mask & 255))};
  }
  static __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
  static __m256 load8(const uint8_t* p) {
    const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v));
  }
  static __m256 load8(const Half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static __m256 load8(const Bfloat* p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
  }
  static Floats expand(Floats kept, uint32_t mask) {
    return {expand8(kept.low, mask & 255), expand8(kept.high, mask >> 8)};
  }
  static __m256 expand8(__m256 kept, uint32_t mask) {
    static constexpr Ranks kRanks;
    const __m128i ranks = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kRanks.of[mask]));
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), lane);
    const __m256 from = _mm256_permutevar8x32_ps(kept, _mm256_cvtepu8_epi32(ranks));
    return _mm256_and_ps(from, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)));
  }

  // Entries of a table of 16, or of one of 8 that is repeated, by the low bits of each index.
  template <int Bits>
  static Floats pick(const float* table, Ints index) {
    return {pick8<Bits>(table, index.low), pick8<Bits>(table, index.high)};
  }
  template <int Bits>
  static __m256 pick8(const float* table, __m256i index) {
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), index);
    if constexpr (Bits < 4) return low;
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), index);
    return choose8<3>(index, low, high);
  }
  // Entries of a table of 16; byte `Column` of each row's 4 is its code, below 16.
  template <int Column>
  static Floats entry(const float* table, Bytes codes) {
    return pick<4>(table, {_mm256_srli_epi32(codes.low, 8 * Column),
                           _mm256_srli_epi32(codes.high, 8 * Column)});
  }
  // In each row `high` where a bit of its 4 bytes is set, else `low`.
  template <int Bit>
  static Floats choose(Bytes codes, Floats low, Floats high) {
    return {choose8<Bit>(codes.low, low.low, high.low),
            choose8<Bit>(codes.high, low.high, high.high)};
  }
  template <int Bit>
  static __m256 choose8(__m256i codes, __m256 low, __m256 high) {
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 31 - Bit)));
  }
};

}  // namespace
}  // namespace tauten
